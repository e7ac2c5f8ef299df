"""Stochastic rounding of float32 to bfloat16."""

import torch
from torch import Tensor

# the bits of a float32 that bfloat16 lacks
LOST = 0xFFFF


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
