"""Which layers a Muon trains itself, and what it leaves to its auxiliary Adam, at which learning rate."""

from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer

import torch
from torch import nn

import pytest

NAMES = ["down.0.to_q", "down.0.to_k", "up.1.to_q"]
RULES = pytest.mark.parametrize("rule", ["MUON_ADV", "ADAMUON_ADV"])


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(6, 4, generator=generator)) for _ in NAMES]
    for parameter, name in zip(parameters, NAMES, strict=True):
        parameter.parameter_info = SimpleNamespace(role="HIDDEN", name=name)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def with_adam(optimizer: BatchedOptimizer) -> list[str]:
    """Names of the parameters whose state is Adam's: it has a second moment where Muon has none."""
    optimizer.step()
    saved = optimizer.state_dict()
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    return [names[place] for place, state in saved["state"].items() if "exp_avg_sq" in state["slots"]]


@pytest.mark.parametrize(
    ("layers", "regex", "adam"),
    [
        (None, False, []),
        ("", False, []),
        ("to_q", False, ["down.0.to_k"]),
        ("up.1, to_k", False, ["down.0.to_q"]),
        (r"^down\.\d+\.to_q$", True, ["down.0.to_k", "up.1.to_q"]),
        ("nothing", False, NAMES),
    ],
)
def test_named_layers_are_muons(layers, regex, adam):
    optimizer = BatchedOptimizer(matrices(), "MUON_ADV", muon_hidden_layers=layers, muon_adam_regex=regex)
    assert with_adam(optimizer) == adam


@RULES
def test_the_auxiliary_adam_has_a_rate_of_its_own_that_follows_the_schedule(rule):
    options = {"muon_hidden_layers": "to_q", "muon_adam_config": {"beta1": 0.8}}

    def distances(lr: float, now: float, **more: float) -> list[float]:
        parameters = matrices()
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer = BatchedOptimizer(parameters, rule, lr=lr, **options, **more)
        optimizer.param_groups[0]["lr"] = now
        optimizer.step()
        return [float((p.detach() - b).norm()) for p, b in zip(parameters, before, strict=True)]

    shared, own = distances(0.1, 0.05), distances(0.1, 0.05, muon_adam_lr=0.01)
    assert own[0] == shared[0] and own[2] == shared[2]
    # 0.01 at the start, half of it now
    assert own[1] == pytest.approx(shared[1] * 0.1, rel=1e-5)


def test_decay_of_the_auxiliary_adam_is_at_its_own_rate():
    parameters = matrices()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = parameters[1].detach().clone()
    options = {"muon_hidden_layers": "to_q", "muon_adam_lr": 0.01, "weight_decay": 0.5}
    BatchedOptimizer(parameters, "MUON_ADV", lr=0.1, **options).step()
    torch.testing.assert_close(parameters[1].detach(), before * (1 - 0.01 * 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"muon_hidden_layers": "to_q, (", "muon_adam_regex": True}, r"^muon_hidden_layers: found \(, expected a reg"),
        ({"muon_adam_lr": -1.0}, "^muon_adam_lr: found -1.0, expected null or a number"),
        ({"muon_hidden_layers": 3}, "^muon_hidden_layers: found 3, expected null or a text"),
    ],
)
def test_wrong_values_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        BatchedOptimizer(matrices(), "MUON_ADV", **options)
