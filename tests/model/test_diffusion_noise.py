"""Timestep distributions and noise against their statistics, schedules against a peer.

All seeds are fixed: a test that passes once passes always.
"""

import math
from collections.abc import Callable

from modules.model.diffusion_noise import (
    draw_noise,
    draw_noise_levels,
    draw_timesteps,
    offset_coefficients,
    zero_terminal_snr,
)
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.TimestepDistribution import TimestepDistribution as Distribution
from modules.util.UserError import UserError

import torch

import numpy as np
import pytest
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from scipy import integrate, stats

DRAWS, STEPS = 40_000, 1000
# Kolmogorov–Smirnov: a true sample of n exceeds 1.95/√n once in a thousand; the grid of 10,000 points of the
# distributions that are given as densities adds at most 1e-4 times their density, which stays below 5 here
TOLERANCE = 1.95 / math.sqrt(DRAWS) + 5e-4
EDGES = np.arange(STEPS + 1) / STEPS


def config(**options) -> TrainConfig:
    return TrainConfig(**options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(options: dict, count: int = DRAWS) -> np.ndarray:
    return draw_timesteps(config(**options), count, STEPS, generator()).numpy()


def deviation(drawn: np.ndarray, cumulative: Callable[[np.ndarray], np.ndarray]) -> float:
    """Largest distance between the sample's and the expected cumulative distribution, at the steps' edges."""
    assert drawn.min() >= 0 and drawn.max() < STEPS
    share = np.searchsorted(np.sort(drawn), np.arange(STEPS + 1)) / len(drawn)
    return float(np.abs(share - cumulative(EDGES)).max())


def from_density(density: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    # trapezoids: the error is of the order of the squared step, 1e-8
    x = np.linspace(0, 1, 10_001)
    area = integrate.cumulative_trapezoid([density(value) for value in x], x, initial=0)
    return lambda edges: np.interp(edges, x, area / area[-1])


def logit_normal(mean: float, deviation_: float) -> Callable[[np.ndarray], np.ndarray]:
    def cumulative(x: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return stats.norm.cdf((np.log(x) - np.log1p(-x) - mean) / deviation_)

    return cumulative


def heavy_tail(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    # SD 3's mode sampling (arXiv 2403.03206, eq. 20), as the share of a fine grid that lands below x
    v = (np.arange(400_000) + 0.5) / 400_000
    values = np.sort(1 - v - scale * (np.cos(np.pi / 2 * v) ** 2 - 1 + v))
    return lambda x: np.searchsorted(values, x) / len(values)


CASES = {
    "uniform": ({"timestep_distribution": Distribution.UNIFORM}, lambda x: x),
    "sigmoid": (
        {"timestep_distribution": Distribution.SIGMOID, "noising_weight": 8, "noising_bias": 0.1},
        from_density(lambda x: 1 / (1 + math.exp(-8 * (x - 0.6)))),
    ),
    "sigmoid down": (
        {"timestep_distribution": Distribution.SIGMOID, "noising_weight": -5, "noising_bias": 0.0},
        from_density(lambda x: 1 / (1 + math.exp(5 * (x - 0.5)))),
    ),
    "logit normal": ({"timestep_distribution": Distribution.LOGIT_NORMAL}, logit_normal(0, 1)),
    "logit normal moved": (
        {"timestep_distribution": Distribution.LOGIT_NORMAL, "noising_weight": 0.5, "noising_bias": -0.7},
        logit_normal(-0.7, 1.5),
    ),
    "heavy tail": ({"timestep_distribution": Distribution.HEAVY_TAIL, "noising_weight": 1.29}, heavy_tail(1.29)),
    "heavy tail down": ({"timestep_distribution": Distribution.HEAVY_TAIL, "noising_weight": -0.8}, heavy_tail(-0.8)),
    # SD 3's cosine map (arXiv 2403.03206, eq. 21)
    "cos map": (
        {"timestep_distribution": Distribution.COS_MAP},
        from_density(lambda x: 2 / (math.pi - 2 * math.pi * x + 2 * math.pi * x * x)),
    ),
    "parabola": (
        {"timestep_distribution": Distribution.INVERTED_PARABOLA, "noising_weight": 7.0, "noising_bias": 0.1},
        from_density(lambda x: max(0.0, 2 - 7 * (x - 0.6) ** 2)),
    ),
    "beta": (
        {"timestep_distribution": Distribution.BETA, "noising_weight": 2.0, "noising_bias": 5.0},
        lambda x: stats.beta.cdf(x, 2, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_distribution(name):
    options, cumulative = CASES[name]
    drawn = draw(options)
    assert deviation(drawn, cumulative) < TOLERANCE
    if name != "uniform":
        # the test can tell: no other case fits
        others = [other for key, (_, other) in CASES.items() if key != name]
        assert min(deviation(drawn, other) for other in others) > 2 * TOLERANCE


@pytest.mark.parametrize("name", ["uniform", "cos map", "beta"])
def test_range(name):
    options, cumulative = CASES[name]
    drawn = draw({**options, "min_noising_strength": 0.29, "max_noising_strength": 0.7})
    assert drawn.min() >= 290 and drawn.max() < 700
    # the whole distribution is squeezed into the range, not cut off
    assert deviation(drawn, lambda x: cumulative(np.clip((x - 0.29) / (0.7 - 0.29), 0, 1))) < TOLERANCE


@pytest.mark.parametrize("shift", [0.4, 3.0])
@pytest.mark.parametrize("name", ["uniform", "logit normal", "sigmoid"])
def test_shift(name, shift):
    options, cumulative = CASES[name]
    drawn = draw({**options, "timestep_shift": shift})
    # u' = s·u/(1 + (s − 1)·u) has the inverse u = u'/(s − (s − 1)·u')
    assert deviation(drawn, lambda x: cumulative(x / (shift - (shift - 1) * x))) < TOLERANCE
    assert (drawn.mean() > draw(options).mean()) == (shift > 1)


def test_shift_moves_the_range_too():
    drawn = draw({"min_noising_strength": 0.5, "max_noising_strength": 0.6, "timestep_shift": 0.25})
    assert drawn.min() == 200 and drawn.max() == 272
    # no heap at an end
    assert np.bincount(drawn)[200:272].max() < 2 * DRAWS / 72


@pytest.mark.parametrize("steps", [1, 10, 1000])
@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_for_any_options(name, steps):
    options = {**CASES[name][0], "min_noising_strength": 0.999, "max_noising_strength": 1.0, "timestep_shift": 50.0}
    drawn = draw_timesteps(config(**options), 500, steps, generator())
    assert drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() < steps


def test_distribution_without_mass():
    with pytest.raises(UserError, match="INVERTED_PARABOLA.*noising_bias 5"):
        draw({"timestep_distribution": Distribution.INVERTED_PARABOLA, "noising_weight": 1, "noising_bias": 5}, 1)


@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_draw(name):
    settings = config(**CASES[name][0])
    first, second = (draw_timesteps(settings, 64, STEPS, generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw_timesteps(settings, 64, STEPS, generator(4)))
    # one number per image, so that a change of the distribution leaves the noise of a run as it was
    used, plain = generator(3), generator(3)
    draw_timesteps(settings, 64, STEPS, used)
    torch.rand(64, generator=plain, dtype=torch.float64)
    assert torch.equal(used.get_state(), plain.get_state())


@pytest.mark.parametrize("name", CASES)
def test_levels_are_the_timesteps_before_they_are_rounded(name):
    """Families with continuous time take the levels; the two agree draw by draw."""
    settings = config(**CASES[name][0], timestep_shift=2.0)
    levels = draw_noise_levels(settings, 500, generator())
    assert levels.dtype == torch.float64 and 0 <= levels.min() and levels.max() <= 1
    assert torch.equal((levels * STEPS).long().clamp(max=STEPS - 1), draw_timesteps(settings, 500, STEPS, generator()))
    assert len(levels.unique()) > 300


def test_a_given_shift_takes_the_place_of_the_options():
    plain, fixed = config(), config(timestep_shift=3.0)
    assert torch.equal(draw_noise_levels(plain, 64, generator(), 3.0), draw_noise_levels(fixed, 64, generator()))
    assert torch.equal(draw_noise_levels(fixed, 64, generator(), 1.0), draw_noise_levels(plain, 64, generator()))


# --- noise

SHAPE = torch.Size((512, 4, 8, 8))


def test_plain_noise_is_standard_normal():
    noise, mixed = draw_noise(config(), SHAPE, generator())
    assert noise is mixed
    # 131,072 numbers: the mean's deviation is 0.0028, the standard deviation's 0.002; five of each
    assert abs(noise.mean()) < 0.014 and abs(noise.std() - 1) < 0.01
    assert torch.equal(noise, torch.randn(SHAPE, generator=generator()))


def test_offset_noise_moves_whole_channels():
    weight = 0.5
    noise, mixed = draw_noise(config(offset_noise_weight=weight), SHAPE, generator())
    assert noise is mixed
    offset = noise - torch.randn(SHAPE, generator=generator())
    # constant within a channel, up to rounding of numbers of size 4
    assert offset.std(dim=(2, 3)).max() < 1e-6
    means = offset.mean(dim=(2, 3))
    # 2,048 offsets: five deviations of their standard deviation, weight/√4096
    assert abs(means.std() - weight) < 5 * weight / 64
    # independent between channels: correlation of 512 pairs, five deviations
    assert torch.corrcoef(means.T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(512)


def test_generalised_offset_scales_each_image():
    settings = config(offset_noise_weight=0.5, generalized_offset_noise=True)
    psi = torch.linspace(0, 1, SHAPE[0])
    plain, _ = draw_noise(config(offset_noise_weight=0.5), SHAPE, generator())
    scaled, _ = draw_noise(settings, SHAPE, generator(), psi)
    base = torch.randn(SHAPE, generator=generator())
    torch.testing.assert_close(scaled - base, (plain - base) * psi[:, None, None, None], atol=1e-6, rtol=0)
    # off: psi is not used
    assert torch.equal(draw_noise(config(offset_noise_weight=0.5), SHAPE, generator(), psi)[0], plain)


def test_perturbation_is_mixed_in_but_not_predicted():
    settings = config(perturbation_noise_weight=0.1)
    noise, mixed = draw_noise(settings, SHAPE, generator())
    assert torch.equal(noise, draw_noise(config(), SHAPE, generator())[0])
    assert abs((mixed - noise).std() - 0.1) < 0.001
    assert abs(torch.corrcoef(torch.stack([(mixed - noise).flatten(), noise.flatten()]))[0, 1]) < 0.014


# --- schedules


def sd_alphas() -> torch.Tensor:
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod


def test_zero_terminal_snr_equals_the_peer():
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = zero_terminal_snr(scheduler.alphas_cumprod)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(scheduler.betas), dim=0)
    # the peer goes through betas in float32: a thousand factors, each rounded
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)
    assert ours[-1] == 0 and (ours.diff() < 0).all()
    torch.testing.assert_close(ours[0], scheduler.alphas_cumprod[0])
    # a schedule that ends in pure noise stays as it is
    torch.testing.assert_close(zero_terminal_snr(ours), ours, atol=1e-7, rtol=0)


def test_offset_coefficients():
    alphas = sd_alphas()
    psi = offset_coefficients(alphas)
    assert psi.shape == alphas.shape and psi[-1] == 1
    assert (psi > 0).all() and (psi.diff() > 0).all() and psi[0] < 0.1
    # the recursion of arXiv 2412.03134 (alg. 1) word for word, in float64
    bar = alphas.double().numpy()
    before = np.concatenate([[1.0], bar[:-1]])
    alpha = bar / before
    gamma = np.zeros(len(bar))
    gamma[0] = 1
    for t in range(1, len(bar)):
        factor = (1 - alpha[t]) * math.sqrt(before[t]) / (alpha[t] * (1 - before[t]))
        gamma[t] = factor * (gamma[:t] / np.sqrt(before[:t])).sum()
    expected = np.cumsum(gamma / np.sqrt(before)) / np.sqrt(1 - bar)
    np.testing.assert_allclose(psi.numpy(), expected / expected[-1], rtol=1e-5)
