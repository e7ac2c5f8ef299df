"""Adam's steps by one kernel against the same steps by single operations."""

from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features import one_pass_adam
from scaled_optim.rules import AdamWAdv, ProdigyAdv

import torch
from torch import Tensor, nn

import pytest

SHAPES = [("LORA_DOWN", (3, 7))] * 5 + [("HIDDEN", (4, 3, 3, 3))] * 2 + [("VECTOR", ()), ("OUTPUT", (65, 67))]
SERVED = [
    {},
    {"weight_decay": 0.1},
    {"scaled_optm": True, "weight_decay": 0.1},
    {"fisher_wd": True, "weight_decay": 0.1},
    {"cautious_wd": True, "weight_decay": 0.1, "use_cautious": True},
    {"use_grams": True},
    {"centered_wd": 0.1, "orthogonal_gradient": "flattened"},
    {"state_precision": "int8_sr"},
    {"factored_2nd": True},
    {"scaled_eps": True, "eps": 1.0},
    {"use_bias_correction": False},
]
OTHERS = [{"nesterov": True}, {"use_atan2": True}, {"kourkoutas_beta": True}, {"beta1": 0.0}]
# The kernel rounds in another order. Quantised state may round to the neighbouring level then.
TOLERANCE, QUANTISED = 1e-5, 0.02


def trained(rule: str, options: dict, dtype: torch.dtype, *, watch: bool = False, steps: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _, shape in SHAPES]
    for number, (parameter, (role, _)) in enumerate(zip(parameters, SHAPES, strict=True)):
        parameter.parameter_info = SimpleNamespace(role=role, name=str(number))
    optimizer = BatchedOptimizer(parameters, rule, lr=1.0 if rule == "PRODIGY_ADV" else 0.05, chunk=50, **options)
    optimizer.watch = watch
    for _ in range(steps):
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (parameter.detach().float() + noise).to(dtype)
        # layouts that a kernel which walks through memory would get wrong
        parameters[5].grad = parameters[5].grad.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    if watch:
        assert optimizer.read_statistics()["update_rms/LORA_DOWN"] > 0
    return [parameter.detach() for parameter in parameters]


def served(options: dict, rule: str) -> bool:
    return rule == "ADAMW_ADV" or "use_bias_correction" not in options


CASES = [
    (rule, options, dtype)
    for rule in ("ADAMW_ADV", "PRODIGY_ADV")
    for options in SERVED
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    if served(options, rule)
]


@pytest.mark.parametrize(("rule", "options", "dtype"), CASES, ids=str)
def test_the_kernel_does_what_the_single_operations_do(rule, options, dtype, monkeypatch):
    calls = []
    kernel = torch._fused_adamw_
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *a, **k: (calls.append(1), kernel(*a, **k)))
    found = trained(rule, options, dtype)
    assert calls
    for module in (AdamWAdv, ProdigyAdv):
        monkeypatch.setattr(module, "fits_one_pass", lambda s, beta2: False)
    calls.clear()
    expected = trained(rule, options, dtype)
    assert not calls
    rounds = dtype == torch.bfloat16 or "state_precision" in options
    for ours, single in zip(found, expected, strict=True):
        torch.testing.assert_close(
            ours, single, rtol=0, atol=(QUANTISED if rounds else TOLERANCE) * float(single.abs().max())
        )


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_other_directions_take_the_single_operations(options, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("the kernel knows plain Adam only")

    monkeypatch.setattr(one_pass_adam.torch, "_fused_adamw_", fail)
    trained("ADAMW_ADV", options, torch.float32)


@pytest.mark.parametrize("options", SERVED[:4], ids=str)
def test_watching_changes_no_bit(options):
    plain, watched = (trained("ADAMW_ADV", options, torch.float32, watch=watch) for watch in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
