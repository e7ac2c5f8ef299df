"""What questions measure on the way, on short real trainings of the tiny base's middle block."""

import json
from pathlib import Path

from benchmarks.stability.kourkoutas import solved_beta2, whole_units
from benchmarks.stability.NoisyUnit import SIZE, NoisyUnit, unit_of
from benchmarks.stability.output_variance import VARIANCE
from benchmarks.stability.training import measured
from benchmarks.stability.Trial import Measured, Trial
from benchmarks.training.sweep import Sweep
from modules.util.config.load import load_train_config
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import ParameterInfo, set_parameter_info
from scaled_optim.roles import PER_COLUMN, PER_ROW, ROLES, WHOLE
from scaled_optim.scaling import OFT_NORM

import torch
from torch import nn

import pytest

ROOT = Path(__file__).resolve().parents[3]
STEPS = 10
RATE = 0.008


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        concepts = [
            {"name": "lumo", "path": "training_concepts/tiny_concept/lumo", "text": {"prompt_source": "sample"}}
        ]
        changes = [
            f"concepts={json.dumps(concepts)}", f"cache_dir={tmp_path_factory.mktemp('cache')}", "batch_size=2",
            "validation=false",
            "layer_filter=mid_block.attentions", "loss_weight_fn=CONSTANT", "learning_rate_scheduler=CONSTANT",
            "learning_rate_warmup_steps=5",
        ]  # fmt: skip
        config = load_train_config(ROOT / "training_presets/Tiny/#tiny LoRA.json", changes, warn=lambda text: None)
        return Sweep(config, STEPS, lambda text: None, held_out=False, draws=1)


def trained(sweep: Sweep, letter: str, case: str, rate: float = RATE) -> Measured:
    return measured(sweep, Trial(letter, case, rate, 0, STEPS))


def factor(role: ParameterRole, rows: int, cols: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)))
    set_parameter_info(parameter, ParameterInfo(role, "unet", "layer", f"unet.layer.{role}"))
    return parameter


@pytest.mark.parametrize(
    ("role", "dim"), [(ParameterRole.LORA_DOWN, 0), (ParameterRole.LORA_UP, 1), (ParameterRole.OFT, 0)]
)
def test_spikes_reach_one_unit_alone(role, dim):
    parameter, scale = factor(role, 6, 10), factor(ParameterRole.DORA_SCALE, 1, 10)
    noise = NoisyUnit([parameter, scale], 0, True)
    assert list(noise.units.values()) == [dim] and unit_of(scale) is None
    gradients = {}
    for step in (5, 6, 7):
        noise.coming = step
        parameter.grad = None
        parameter.square().sum().backward()
        gradients[step] = parameter.grad
        assert torch.equal(noise.clean[parameter], gradients[5])
    assert torch.equal(gradients[5], gradients[7]) and noise.spikes_in(6) and not noise.spikes_in(7)
    off = gradients[6] - gradients[5]
    assert not off.narrow(dim, 1, off.shape[dim] - 1).any()
    # float32 noise that was scaled to its length
    assert float(off.norm()) == pytest.approx(SIZE * float(gradients[5].select(dim, 0).norm()), rel=1e-5)


def test_beta2_is_solved_from_the_second_moment():
    draws = torch.Generator().manual_seed(0)
    old, square = (torch.rand(4, 9, generator=draws, dtype=torch.float64) for _ in range(2))
    betas = torch.tensor([0.9, 0.95, 0.99, 0.999], dtype=torch.float64)
    new = square + betas[:, None] * (old - square)
    assert torch.allclose(solved_beta2(old, new, square, 0), betas, rtol=1e-12)
    assert torch.allclose(solved_beta2(old.t(), new.t(), square.t(), 1), betas, rtol=1e-12)


def test_the_stand_in_for_features_per_tensor_is_taken_back():
    with whole_units():
        assert ROLES["LORA_DOWN"].unit == ROLES["LORA_UP"].unit == WHOLE
    assert (ROLES["LORA_DOWN"].unit, ROLES["LORA_UP"].unit) == (PER_ROW, PER_COLUMN)


def test_beta2_answers_per_rank_or_for_all(sweep):
    fixed, whole, ranks = (trained(sweep, "c", f"{form} noisy").figures for form in ("fixed", "per tensor", "per rank"))
    # the moment is float32, of which a step with β₂ = 0.999 leaves four digits of β₂
    assert fixed == pytest.approx(dict.fromkeys(fixed, 0.999), abs=1e-4)
    assert whole["beta2_noisy_after"] == pytest.approx(whole["beta2_quiet_after"], abs=1e-3)
    assert ranks["beta2_noisy_after"] < ranks["beta2_quiet_after"] - 0.005
    # one noisy rank moves them all, but not the others where each has its own
    whole_clean, ranks_clean = (trained(sweep, "c", f"{form} clean").figures for form in ("per tensor", "per rank"))
    assert whole["beta2_quiet_after"] < whole_clean["beta2_quiet_after"] - 0.005
    assert ranks["beta2_quiet_after"] == pytest.approx(ranks_clean["beta2_quiet_after"], abs=1e-3)


def test_projection_per_rank_leaves_the_others_alone(sweep):
    ranks, whole, off = (
        trained(sweep, "d", f"LoRA {mode} noisy").figures for mode in ("per_rank", "flattened", "disabled")
    )
    assert ranks["disturbed_most"] == 0 < whole["disturbed"] <= whole["disturbed_most"]
    assert ranks["changed"] > 0 and off == dict.fromkeys(off, 0.0)
    assert trained(sweep, "d", "LoRA flattened clean").figures["disturbed_most"] == 0
    assert trained(sweep, "d", "OFT per_rank noisy", 0.04).figures["disturbed_most"] == 0


def test_variance_of_a_step(sweep):
    rotation, both = (trained(sweep, "f", f"{method} {VARIANCE}").figures for method in ("OFT", "DoRA-OFT"))
    assert rotation["layers"] >= 8
    # η² times the base's own output variance where all its columns are equally long; gradients prefer the longer ones
    assert 0.9 < rotation["whole step, relative"] < 1.6
    assert "magnitude, white" not in rotation
    # the magnitude's step has RMS η, whatever the base
    assert both["magnitude, white"] == pytest.approx(1, rel=0.02)
    total = both["magnitude, white"] + both["direction, white"]
    assert both["whole step, white"] == pytest.approx(total, rel=0.05), "portions are orthogonal"
    coherent = trained(sweep, "f", "OFT coherent").figures
    # ‖T‖ is OFT_NORM instead of √(16/8)
    assert coherent["whole step, relative"] / rotation["whole step, relative"] == pytest.approx(
        OFT_NORM**2 / 2, rel=0.1
    )


def test_signs_that_flip(sweep):
    plain, freeze = (trained(sweep, "a", f"LION_ADV {variant}") for variant in ("plain", "freeze"))
    for own in (plain, freeze):
        assert 0 < own.figures["flips"] < 0.5 and own.figures["fluctuation"] > 0
        assert len(own.figures["last_losses"]) >= 3
    assert plain.figures["last_losses"][-1] != freeze.figures["last_losses"][-1]


def test_ranks_are_traced(sweep):
    stiefel = trained(sweep, "g", "STIEFEL_LORA").figures
    # orthonormal columns use every rank
    assert stiefel["up_rank"] == pytest.approx(16, rel=1e-3)
    adamw = trained(sweep, "g", "ADAMW_ADV").figures
    assert 1 <= adamw["up_rank"] < 16 and [point[0] for point in adamw["points"]][-1] == STEPS
