"""What CONTRIBUTING.md promises: a rule, an option and an objective are a file and a line each.

A kind is added in tests/modelSaver/test_added_kind.py, a family in tests/model/test_flow_model.py.
"""

from modules.trainer import objective
from modules.trainer.objective import OBJECTIVES, Objective
from modules.util.enum.ConceptType import ConceptType
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.moments import FIRST, first_moment
from scaled_optim.options import DECLARED, SHARE, Declared
from scaled_optim.rules.registry import RULES, owners_of
from scaled_optim.rules.Rule import COMMON, MOMENTUM, Rule

import torch
from torch import nn

import pytest


class HeavyBall(Rule):
    """m ← μ·m + (1 − μ)·g, u = m + `look_ahead`·g."""

    name = "HEAVY_BALL"
    defaults = {**COMMON, **MOMENTUM, "momentum": 0.9, "look_ahead": 0.0}

    def moments(self, options):
        return [FIRST] if options["momentum"] else []

    def direction(self, s):
        m = first_moment(s, s.g, s.options["momentum"])
        return torch.add(m, s.g, alpha=s.options["look_ahead"])


@pytest.fixture
def added(monkeypatch):
    """The line in the registry of rules, and the one that declares the option."""
    monkeypatch.setitem(RULES, HeavyBall.name, HeavyBall())
    monkeypatch.setitem(DECLARED, "look_ahead", Declared("Look ahead", "Adds a share of the gradient.", SHARE))


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))]


def train(own, optimizer, steps):
    """Toward ones."""
    for _ in range(steps):
        for parameter in own:
            parameter.grad = parameter.detach() - 1
        optimizer.step()
    return flat(own)


def flat(own):
    return torch.cat([parameter.detach().flatten() for parameter in own])


@pytest.mark.parametrize("features", [
    {}, {"scaled_optm": True, "weight_decay": 0.01, "cautious_wd": True}, {"state_precision": "int8_sr"},
    {"orthogonal_gradient": "flattened", "centered_wd": 0.1, "centered_wd_mode": "int4"},
])  # fmt: skip
def test_an_added_rule_has_every_shared_feature_and_resumes(added, features):
    options = {"look_ahead": 0.5, **features}
    own = parameters()
    optimizer = BatchedOptimizer(own, "HEAVY_BALL", 0.02, **options)
    start = flat(own)
    train(own, optimizer, 5)
    again = [nn.Parameter(parameter.detach().clone()) for parameter in own]
    resumed = BatchedOptimizer(again, "HEAVY_BALL", 0.02, **options)
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(train(own, optimizer, 5), train(again, resumed, 5))
    assert (train(own, optimizer, 20) - 1).norm() < (start - 1).norm()


def test_an_added_option_is_checked_and_belongs_to_its_rule(added):
    assert owners_of("look_ahead") == ["HEAVY_BALL"]
    with pytest.raises(ValueError, match="look_ahead: found 2, expected"):
        BatchedOptimizer(parameters(), "HEAVY_BALL", look_ahead=2)
    with pytest.raises(ValueError, match="look_ahead: ADAMW_ADV has no such option; it is an option of HEAVY_BALL"):
        BatchedOptimizer(parameters(), "ADAMW_ADV", look_ahead=0.5)


class Silence(Objective):
    """Toward a model that predicts nothing."""

    def target(self, batch, images):
        return torch.zeros_like(batch.batch.latents[images])


def test_an_added_objective_trains_and_is_validated(mini_run, monkeypatch):
    before = mini_run.train(epochs=1)
    monkeypatch.setitem(OBJECTIVES, ConceptType.STANDARD, Silence())
    seen = []
    monkeypatch.setattr(objective, "image_losses", _watched(objective.image_losses, seen))
    after = mini_run.train(epochs=1, output_model_destination=str(mini_run.root / "silent.safetensors"))
    assert before["finished"] and after["finished"]
    assert seen and all(target.abs().max() == 0 for target in seen)


def _watched(losses, seen):
    def watched(config, prediction, weight, mask):
        seen.append(prediction.target.detach())
        return losses(config, prediction, weight, mask)

    return watched
