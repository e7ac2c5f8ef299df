"""Stochastic rounding: of float32 to bfloat16, and of differences in float32."""

import torch
from torch import Tensor

# the bits of a float32 that bfloat16 lacks
LOST = 0xFFFF
# those of its exponent alone, which are the power of two at or below a number
EXPONENT = 0x7F800000


def round_to_bfloat16(value: Tensor, bits: Tensor) -> Tensor:
    """Rounds to a neighbouring bfloat16, to the upper with probability (value − lower)/(upper − lower).

    So E[result] = value: many updates too small for bfloat16 add up, instead of being lost one by one. In magnitude,
    floats are ordered as their bits are; a random number below 2¹⁶ added to the bits carries into the part that is kept
    with just that probability, and what is left of the lower part is cut off.

    A value that bfloat16 can hold stays as it is, infinities and NaN too. Beyond the largest finite bfloat16
    (3.39e38) the upper neighbour is infinity, as it is in rounding to nearest; no finite bfloat16 gets there.

    Args:
        value: float32, any shape, contiguous.
        bits: int32 of the same number of elements; the low 16 of each must be uniform.

    Returns:
        bfloat16 in the shape of `value`.
    """
    rounded = bits.view(value.shape).bitwise_and(LOST).add_(value.view(torch.int32)).bitwise_and_(~LOST)
    rounded = rounded.view(torch.float32)
    # CUDA's NaN has all bits set and would overflow to zero. A clamp between the value and the result itself returns
    # the result, or NaN if a limit is NaN: one pass, where a mask of the NaNs would take three.
    return torch.clamp(rounded, value, rounded).to(torch.bfloat16)


def subtract_at_random_(p: Tensor, x: Tensor, rate: Tensor, noise: Tensor) -> Tensor:
    """p ← p − rate·x with E[p] exact, in place: to one of the two nearest float32, by how near each is.

    Added noise of one rounding unit of p, uniform, makes rounding to nearest do that. Where the difference is in a
    smaller binade than p its own unit is half as large, and the noise two of them, which is as good. Zeros get none.

    Args:
        p: float32 `[b, rows, cols]`, contiguous.
        x: of the same shape; may be p.
        rate: one number each, `[b, 1, 1]`; rate·x must be far smaller than p where it matters.
        noise: of `noise.centered_lanes`, repeated along each parameter.
    """
    amount = p.view(torch.int32).bitwise_and(EXPONENT).view(torch.float32)
    flat, length = amount.view(len(p), -1), noise.shape[1]
    # a rounding unit is 2⁻²³ of the power of two
    noise = noise * 2.0**-23
    full = flat.shape[1] // length * length
    if full:
        flat[:, :full].unflatten(1, (full // length, length)).mul_(noise.unsqueeze(1))
    flat[:, full:].mul_(noise[:, : flat.shape[1] - full])
    return p.sub_(amount.addcmul_(x, rate))
