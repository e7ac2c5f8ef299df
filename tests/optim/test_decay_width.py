"""`scaled_wd`: decay that is free of the learning rate and divided by the width."""

from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.rules.registry import RULES

import torch
from torch import Tensor, nn

import pytest

DECAY = 0.5


def parameter(role: str, *shape: int, name: str = "w", pair: str | None = None) -> nn.Parameter:
    p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    if role == "LORA_UP":
        p.data = torch.linalg.qr(p.data).Q
    p.parameter_info = SimpleNamespace(role=role, name=name, pair=pair)
    return p


def left(rule: str, parameters: list[nn.Parameter], *factors: float, rate: float = 0.01, **options) -> list[Tensor]:
    """What is left of each after steps without gradients, at these shares of the rate."""
    before = [p.detach().clone() for p in parameters]
    optimizer = BatchedOptimizer(parameters, rule, rate, weight_decay=DECAY, scaled_wd=True, **options)
    # ADOPT's first step only gathers
    for k, factor in enumerate((*([0.0] if rule == "ADOPT_ADV" else []), *factors)):
        optimizer.param_groups[0]["lr"] = rate * factor
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert k or rule != "ADOPT_ADV" or all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    return [(p.detach() / q).mean() for p, q in zip(parameters, before, strict=True)]


@pytest.mark.parametrize("rule", RULES)
def test_decay_follows_the_schedule_and_not_the_rate(rule):
    for rate in (0.001, 0.1):
        for scaled in (False, True):
            found = left(rule, [parameter("HIDDEN", 6, 10)], 1, 0.5, rate=rate, scaled_optm=scaled)
            assert found[0].item() == pytest.approx((1 - DECAY / 10) * (1 - DECAY / 20), rel=1e-9)


@pytest.mark.parametrize(
    ("role", "shape", "share"),
    [
        ("HIDDEN", (6, 40), 1 / 40),
        ("OUTPUT", (6, 40), 1 / 40),
        ("HIDDEN", (6, 4, 3, 3), 1 / 36),
        ("INPUT", (9, 5), 1 / 5),
        ("OFT", (3, 28), 2 / 8),
        ("OFT", (5, 6), 2 / 4),
        ("DORA_SCALE", (12, 1), 1 / 12),
        ("VECTOR", (7,), 1 / 7),
        ("VECTOR", (), 1),
        # nobody knows its layer's inputs
        ("LORA_UP", (24, 4), 1 / 24),
    ],
    ids=str,
)
def test_width_of_every_role(role, shape, share):
    found = left("ADAMW_ADV", [parameter(role, *shape)], 1)
    assert found[0].item() == pytest.approx(1 - DECAY * share, rel=1e-9)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "STIEFEL_LORA"])
@pytest.mark.parametrize("rank", [1, 4])
def test_both_factors_of_a_lora_decay_by_the_width_of_their_layer(rule, rank):
    """So ΔW = B·A decays by the law of the layer's own weight, once for each factor, whatever rank and outputs are."""
    for outputs in (8, 30):
        for inputs in (16, 64):
            factors = [
                parameter("LORA_DOWN", rank, inputs, name="down", pair="up"),
                parameter("LORA_UP", outputs, rank, name="up", pair="down"),
            ]
            start = factors[1].detach() @ factors[0].detach()
            left(rule, factors, 1)
            change = (factors[1].detach() @ factors[0].detach()) / start
            expected = torch.full_like(change, (1 - DECAY / inputs) ** 2)
            torch.testing.assert_close(change, expected, rtol=1e-9, atol=0)


def test_stiefel_lora_decays_its_down_factor_alone():
    """Its up factor has no size that could decay, so ΔW decays exactly as the layer's own weight."""
    factors = [
        parameter("LORA_DOWN", 4, 16, name="down", pair="up"),
        parameter("LORA_UP", 30, 4, name="up", pair="down"),
    ]
    found = left("STIEFEL_LORA", factors, 1)
    assert [x.item() for x in found] == pytest.approx([1 - DECAY / 16, 1], rel=1e-9)


def test_centered_decay_is_divided_too():
    p = parameter("HIDDEN", 6, 10)
    start = p.detach().clone()
    optimizer = BatchedOptimizer([p], "LION_ADV", 0.01, centered_wd=DECAY, scaled_wd=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    p.data.add_(1)
    optimizer.step()
    torch.testing.assert_close(p.detach() - start, torch.full_like(start, 1 - DECAY / 10), rtol=1e-9, atol=0)
