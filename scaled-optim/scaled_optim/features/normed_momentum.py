"""Momentum of gradients that were normalised to size 1 first, which tells how far they agree with each other."""

import math
from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import arctangent
from scaled_optim.features.moments import FIRST
from scaled_optim.StackStep import StackStep

from torch import Tensor

# atan2 steps by π/4 where signal and noise are equal; so it is 1 there
GAIN = 4 / math.pi
Doubt = Tensor | tuple[Tensor, Tensor]


def check_normed(options: Mapping[str, Any]) -> None:
    """ValueError where `snr_cond` has nothing to read."""
    if options["snr_cond"] and not (options["normed_momentum"] and options["momentum"]):
        raise ValueError("snr_cond: it reads normed_momentum, of a momentum above 0; expected false without.")


def normed_gain(options: Mapping[str, Any]) -> float:
    """What the learning rate is multiplied with."""
    return GAIN if options["snr_cond"] else 1.0


def normed_direction(s: StackStep, x: Tensor, structured: bool = False) -> tuple[Tensor, Doubt | None]:
    """m ← μ·m + (1 − μ)·x of normalised gradients x; returns u, a fresh tensor, and what it was divided by.

    `nesterov`: u = c·m + (1 − c)·|m₋|·x, with the m₋ before as the gradient's credit; else u = m.
    `snr_cond`: the mean square of x is 1, so 1 − m₋² is its variance, noise beside the signal m:
    u ← atan2(u, √(1 − m₋²)), or with `structured` atan2(u, √(d·e)), d and e being the means of 1 − m₋² over each row
    and each column. The learning rate is to be multiplied with `normed_gain`.

    Args:
        x: `[b, rows, cols]`, of mean square 1 by row, column or number.
        structured: whether rows and columns count instead of single numbers.
    """
    o = s.options
    if not s.has(FIRST):
        return x.clone(), None
    m = s.read(FIRST)
    doubt = _doubt(m, structured) if o["snr_cond"] else None
    credited = m.abs().mul_(x) if o["nesterov"] else None
    m.lerp_(x, 1 - o["momentum"])
    s.write(FIRST, m)
    if credited is None:
        u = m.clone()
    else:
        u = credited.lerp_(m, o["momentum"] if o["nesterov_coef"] is None else o["nesterov_coef"])
    if doubt is None:
        return u, None
    noise = (doubt[0] * doubt[1]) if structured else doubt
    return arctangent(u, noise), doubt


def _doubt(m: Tensor, structured: bool) -> Doubt:
    """√(1 − m²) `[b, rows, cols]`, or of the mean squares of rows and columns `[b, rows, 1]` and `[b, 1, cols]`."""
    square = m * m
    if not structured:
        return square.neg_().add_(1).clamp_(min=0).sqrt_()
    means = (square.sum(dim, keepdim=True) / square.shape[dim] for dim in (2, 1))
    rows, cols = ((1 - mean).clamp_(min=0).sqrt_() for mean in means)
    return rows, cols
