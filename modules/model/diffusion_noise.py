"""Noise, timesteps and schedules that families share. Axes: b batch, t timesteps of the schedule."""

import math
from functools import lru_cache

from modules.model.Draw import per_image
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.TimestepDistribution import TimestepDistribution as Distribution
from modules.util.UserError import UserError

import torch
from torch import Tensor


def shift_timesteps(u: Tensor, shift: float) -> Tensor:
    """u' = s·u / (1 + (s − 1)·u): moves a share of the schedule toward the noisy end for s > 1."""
    return shift * u / (1 + (shift - 1) * u)


def _density(config: TrainConfig, u: Tensor) -> Tensor:
    """Unnormalised density over the share u of the noising range, for the distributions that are given as one."""
    weight, center = config.noising_weight, config.noising_bias + 0.5
    if config.timestep_distribution == Distribution.COS_MAP:
        return 2 / (math.pi * (1 - 2 * u + 2 * u * u))
    if config.timestep_distribution == Distribution.SIGMOID:
        return torch.sigmoid(weight * (u - center))
    return (2 - weight * (u - center) ** 2).clamp(min=0)


@lru_cache(maxsize=8)
def _cumulative(distribution: Distribution, weight: float, bias: float) -> Tensor:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    config = TrainConfig(timestep_distribution=distribution, noising_weight=weight, noising_bias=bias)
    density = _density(config, u)
    if not density.sum() > 0:
        raise UserError(
            f"timestep_distribution: {distribution} with noising_weight {weight:g} and noising_bias {bias:g} "
            "never draws any timestep. Expected a bias nearer to 0 or a smaller weight."
        )
    return density.cumsum(0) / density.sum()


def check_distribution(config: TrainConfig) -> None:
    """UserError if `timestep_distribution` can't draw any timestep."""
    if config.timestep_distribution in (Distribution.SIGMOID, Distribution.INVERTED_PARABOLA):
        _cumulative(config.timestep_distribution, config.noising_weight, config.noising_bias)


def draw_noise_levels(
    config: TrainConfig, count: int, generator: torch.Generator, shift: float | None = None
) -> Tensor:
    """Places `[count]` in 0 … 1 between clean image and pure noise, float64, drawn as `timestep_distribution` says.

    All draws are by inversion: one uniform number per image, whatever the distribution.

    Args:
        config: distribution, its weight and bias, shift, and the noising range.
        count: batch size.
        generator: on the CPU.
        shift: takes the place of `timestep_shift`, as where it depends on the images' size.
    """
    return noise_levels_of(config, torch.rand(count, generator=generator, dtype=torch.float64), shift)


def noise_levels_of(config: TrainConfig, u: Tensor, shift: float | None = None) -> Tensor:
    """The places that numbers `u` `[count]` in 0 … 1, float64, stand for; see `draw_noise_levels`.

    Numbers that are spread evenly give the distribution itself.
    """
    weight, bias = config.noising_weight, config.noising_bias
    match config.timestep_distribution:
        case Distribution.UNIFORM:
            pass
        case Distribution.LOGIT_NORMAL:
            normal = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
            u = torch.sigmoid(bias + (1 + weight) * normal)
        case Distribution.HEAVY_TAIL:
            u = 1 - u - weight * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        case Distribution.BETA:
            # imported here: scipy is slow to load and few runs need it
            from scipy.special import betaincinv

            u = torch.from_numpy(betaincinv(max(weight, 1e-4), max(bias, 1e-4), u.numpy()))
        case _:
            cumulative = _cumulative(config.timestep_distribution, weight, bias)
            u = (torch.searchsorted(cumulative, u).double() + 0.5) / len(cumulative)
    low, high = config.min_noising_strength, config.max_noising_strength
    return shift_timesteps(low + (high - low) * u, config.timestep_shift if shift is None else shift).clamp(0, 1)


def draw_timesteps(config: TrainConfig, count: int, total: int, generator: torch.Generator) -> Tensor:
    """`draw_noise_levels` on a schedule of `total` steps: integers `[count]` in 0 … total − 1."""
    return (draw_noise_levels(config, count, generator) * total).long().clamp(0, total - 1)


def offset_coefficients(alphas_cumprod: Tensor) -> Tensor:
    """ψ(t) of the generalised offset noise, `[t]`, with ψ at the last timestep 1 (arXiv 2412.03134, balanced choice).

    The offset is diffused like the data: its share of the noise grows with the noise level. The recursion
    γ_t = C_t·Σ_{i<t} γ_i/√ᾱ_{i−1}, C_t = (1 − α_t)·√ᾱ_{t−1} / (α_t·(1 − ᾱ_{t−1})), γ_1 = 1 gives
    ψ_t = Σ_{i≤t} γ_i/√ᾱ_{i−1} / √(1 − ᾱ_t), up to the normalisation.
    """
    bar = alphas_cumprod.double()
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    alpha = bar / before
    total, sums = 1.0, [1.0]
    for a, previous in zip(alpha[1:].tolist(), before[1:].tolist(), strict=True):
        total += (1 - a) / (a * (1 - previous)) * total
        sums.append(total)
    psi = torch.tensor(sums, dtype=torch.float64) / (1 - bar).sqrt().cpu()
    return (psi / psi[-1]).float()


def draw_noise(
    config: TrainConfig, shape: torch.Size, generator: torch.Generator, psi: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Standard normal noise `[b, c, ..., h, w]` plus offset noise, and the same with perturbation noise on top.

    Args:
        config: the weights of offset and perturbation noise.
        shape: shape of the latents.
        generator: on the CPU.
        psi: `[b]` factor of the offset of each image, for the generalised offset noise.

    Returns:
        (what the model is asked to predict, what is mixed into the latents).
    """
    noise = torch.randn(shape, generator=generator)
    if config.offset_noise_weight > 0:
        offset = torch.randn((*shape[:2], *[1] * (len(shape) - 2)), generator=generator)
        if config.generalized_offset_noise and psi is not None:
            offset = offset * per_image(psi, offset)
        noise = noise + config.offset_noise_weight * offset
    if config.perturbation_noise_weight > 0:
        return noise, noise + config.perturbation_noise_weight * torch.randn(shape, generator=generator)
    return noise, noise


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shifts and scales √ᾱ so that the last timestep is pure noise and the first stays (arXiv 2305.08891)."""
    root = alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square().float()
