"""Decay too small for float32 is owed for a while, then paid in one portion that is rounded at random.

Of a share c that each step takes away, p·(1 − c) keeps little where c is near the rounding of float32: 1 − 1e-8 is 1,
1 − 3e-8 is 1 − 6e-8, and what is left is rounded the same way again and again. The sum of c over `PERIOD` steps, kept
with the state and taken away with noise of the size of a rounding unit, is right in the mean for every number and c.
"""

from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import Number, wide
from scaled_optim.features.decay_rates import decay_rates
from scaled_optim.noise import centered_lanes
from scaled_optim.roles import Role
from scaled_optim.rounding import subtract_at_random_
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

NAME = "decay_owed"
# From here on a factor 1 − c in float32 is off by at most 2⁻¹⁰ of c, and a product with it, at random, by 2⁻⁸ of that.
SMALL = 2.0**-15
# A portion is then below 2⁻⁹ of a number, and what it costs is shared by so many steps.
PERIOD = 64
# of what is owed; 64 times a decay of 1 is still an int64
UNIT = 2.0**-56


def owed_slots(options: Mapping[str, Any], role: Role) -> list[Slot]:
    """What each parameter owes: a number, where anything decays."""
    if not any(decay_rates(options, role)):
        return []
    return [Slot(NAME, create=lambda p, keys: {"sum": p.new_zeros(p.shape[0], 1, 1, dtype=torch.int64)}, later=True)]


def decay_period(options: Mapping[str, Any], role: Role, configured: float, dtype: torch.dtype) -> int:
    """After how many steps decay is paid: 1, or `PERIOD` where the configured decay of a step is below `SMALL`.

    Args:
        configured: what one unit of decay takes away in a step before schedules.
        dtype: of the arithmetic; float64 needs no portions.
    """
    largest = max(decay_rates(options, role)) * configured
    return PERIOD if dtype == torch.float32 and 0 < largest < SMALL else 1


def debt_of(decay: Number) -> int | Tensor:
    """A decay in units of 2⁻⁵⁶, so that sums are the same to the bit in whatever order they come together."""
    if isinstance(decay, Tensor):
        return (wide(decay) / UNIT).round_().to(torch.int64)
    return round(decay / UNIT)


def portion(s: StackStep) -> Tensor | None:
    """Adds this step's decay to what is owed; where it is time, gives the sum `[b, 1, 1]`, and nothing is owed."""
    if s.n["noted"]:
        return None
    owed = s.store(NAME)["sum"]
    owed.add_(debt_of(s.n["decay"]))
    if not s.n["pays"]:
        return None
    due = (wide(owed) * UNIT).to(s.dtype)
    owed.zero_()
    return due


def take_(s: StackStep, pull: Tensor, rate: Tensor) -> None:
    """p ← p − rate·pull, rounded at random.

    Args:
        pull: `[b, rows, cols]`.
        rate: `[b, 1, 1]`.
    """
    subtract_at_random_(s.p, pull, rate, centered_lanes(s.step, s.p.device))
