"""Losses against formulas that are written another way."""

import math

from modules.model.Prediction import Prediction
from modules.trainer.loss import elementwise_loss, image_losses, loss_scale, timestep_weight
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FINITE = st.floats(-50, 50, width=32)
ONLY = {"mse_strength": 0.0}
# error -> loss, in float64 and without torch
FORMULAS = {
    "mse_strength": lambda e: e * e,
    "mae_strength": abs,
    "log_cosh_strength": lambda e: math.log(math.cosh(e)),
    "huber_strength": lambda e: e * e / 2 if abs(e) < 1.5 else 1.5 * (abs(e) - 0.75),
}


def config(**options) -> TrainConfig:
    return TrainConfig.from_dict(options)


def prediction(error: torch.Tensor, **options) -> Prediction:
    return Prediction(error, torch.zeros_like(error), torch.zeros(len(error), dtype=torch.long), **options)


@settings(max_examples=50, deadline=None)
@given(error=FINITE, target=FINITE, strength=st.floats(0.125, 4, width=32), name=st.sampled_from(sorted(FORMULAS)))
def test_each_strength_against_its_formula(error, target, strength, name):
    options = config(**{**ONLY, name: strength, "huber_delta": 1.5})
    predicted = torch.tensor([[[[error + target]]]])
    wanted = torch.tensor([[[[target]]]])
    exact = float(predicted.double() - wanted.double())
    found = elementwise_loss(options, predicted, wanted).item()
    # float32 rounds values up to 100 by 1e-5 at most, which the square multiplies by up to 200
    assert found == pytest.approx(strength * FORMULAS[name](exact), rel=1e-4, abs=1e-5)


def test_strengths_add_up():
    both = config(mse_strength=0.5, mae_strength=2.0)
    error = torch.tensor([[[[3.0, -1.0]]]])
    assert torch.equal(elementwise_loss(both, error, torch.zeros_like(error)), torch.tensor([[[[10.5, 2.5]]]]))


def test_log_cosh_does_not_overflow():
    error = torch.tensor([[[[-1000.0, 1000.0]]]])
    found = elementwise_loss(config(**ONLY, log_cosh_strength=1.0), error, torch.zeros_like(error))
    assert found.flatten().tolist() == pytest.approx([1000 - math.log(2)] * 2)


def test_low_precision_is_widened_before_the_difference():
    predicted, target = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16), torch.zeros(1, 1, 1, 1)
    # 300² is beyond the largest float16
    assert elementwise_loss(config(), predicted, target).item() == 90000


def test_every_image_has_its_own_mean_and_its_concepts_weight():
    error = torch.stack([torch.full((2, 2, 2), 1.0), torch.full((2, 2, 2), 3.0)])
    losses = image_losses(config(), prediction(error), torch.tensor([1.0, 0.5]), None)
    assert losses.tolist() == [1.0, 4.5]


@pytest.mark.parametrize("normalised", [False, True])
def test_masks_leave_out_and_normalise(normalised):
    error = torch.ones(1, 3, 2, 2)
    error[..., 1, :] = 100.0  # behind the mask
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    options = config(masked_training=True, normalize_masked_area_loss=normalised)
    losses = image_losses(options, prediction(error), torch.ones(1), mask)
    assert losses.item() == pytest.approx(1.0 if normalised else 0.5)


def test_an_empty_mask_is_no_division_by_zero():
    options = config(normalize_masked_area_loss=True)
    losses = image_losses(options, prediction(torch.ones(1, 1, 2, 2)), torch.ones(1), torch.zeros(1, 1, 2, 2))
    assert losses.item() == 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_the_mean_is_over_all_axes_of_an_image(shape):
    error = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mask = (torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(2)) > 0.5).float()
    options = config(normalize_masked_area_loss=True)
    found = image_losses(options, prediction(error), torch.ones(2), mask)
    for own, image, kept in zip(found, error, mask, strict=True):
        assert own.item() == pytest.approx(((image * kept) ** 2).mean().item() / kept.mean().item(), rel=1e-5)


# snr, epsilon's weight, v's weight; γ = 5 for min-SNR, 0.5 for P2
WEIGHTS = {
    "MIN_SNR_GAMMA": lambda s, v: min(s, 5) / (s + v),
    "DEBIASED_ESTIMATION": lambda s, v: 1 / math.sqrt(min(s, 1000) + v),
    "P2": lambda s, v: (1 + s + v) ** -5.0,
}


@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_timestep_weights(name, velocity):
    snr = torch.tensor([1e-4, 0.3, 1.0, 5.0, 40.0, 5000.0])
    options = config(loss_weight_fn=name, loss_weight_strength=5.0)
    found = timestep_weight(options, prediction(torch.zeros(6, 1, 1, 1), snr=snr, velocity=velocity))
    wanted = [WEIGHTS[name](float(s), int(velocity)) for s in snr]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    losses = image_losses(
        options, prediction(torch.ones(6, 1, 1, 1), snr=snr, velocity=velocity), torch.full((6,), 2.0), None
    )
    assert losses.tolist() == pytest.approx([2 * weight for weight in wanted], rel=1e-5)


def test_constant_weight_is_none_at_all():
    assert timestep_weight(config(), prediction(torch.zeros(2, 1, 1, 1), snr=torch.ones(2))) is None


def test_sigma_has_no_meaning_for_this_family():
    with pytest.raises(UserError, match="loss_weight_fn: SIGMA has no meaning"):
        timestep_weight(config(loss_weight_fn="SIGMA"), prediction(torch.zeros(1, 1, 1, 1), snr=torch.ones(1)))


@pytest.mark.parametrize(("scaler", "factor"), [("NONE", 1), ("BATCH", 3), ("GRADIENT_ACCUMULATION", 5), ("BOTH", 15)])
def test_loss_scaler(scaler, factor):
    assert loss_scale(config(loss_scaler=scaler, batch_size=3, gradient_accumulation_steps=5)) == factor
