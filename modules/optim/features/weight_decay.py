"""Every kind of weight decay: standard, centered, Fisher, cautious, and which parameter gets which."""

from collections.abc import Mapping
from typing import Any

from modules.optim.anchors import ANCHORS
from modules.optim.arithmetic import Number, add_scaled_, root_mean_square
from modules.optim.roles import Role
from modules.optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

NAME = "anchor"
# With atan2 the divisor has no ε, and is 0 where there was no gradient yet. The square of 1/SMALLEST is still finite.
SMALLEST = 1e-15


def decay_rates(options: Mapping[str, Any], role: Role) -> tuple[float, float]:
    """(decay toward zero, decay toward the start) of a role, each per unit of the learning rate.

    Zero is the start of LoRA factors and OFT blocks, so for them the centered rate is plain decay; the plain rate is
    theirs only where no centered one is set. All else takes both.
    """
    plain, centered = options["weight_decay"], options["centered_wd"]
    if role.starts_from_model:
        return (centered or plain), 0.0
    return plain, centered


def anchor_slots(options: Mapping[str, Any], role: Role) -> list[Slot]:
    """Where the parameters started, for those that are pulled there."""
    if not decay_rates(options, role)[1]:
        return []
    anchor = ANCHORS[options["centered_wd_mode"]]
    return [Slot(NAME, create=lambda p, keys: anchor.create(p))]


def fisher_factor(s: StackStep) -> Number:
    """Fisher decay's weight for every element: F = 1/D, then F/max(1, RMS(p·F)) (FAdam, arXiv 2405.12807)."""
    if not s.options.get("fisher_wd"):
        return 1.0
    inverse = s.denominator.clamp(min=SMALLEST).reciprocal_()
    return inverse.div_(root_mean_square(s.p * inverse).clamp_(min=1))


def decay_(s: StackStep, u: Tensor) -> None:
    """Decays the parameters `s.p` in place, before the step.

    p ← p − c·F·M·δ for both kinds, δ = p or p − p₀, c = rate·`s.n["decay"]`, F Fisher's factor,
    M = [u·δ ≥ 0] for cautious decay (arXiv 2510.12402), else 1.
    """
    o, p = s.options, s.p
    plain, centered = decay_rates(o, s.role)
    if not plain and not centered:
        return
    factor, cautious = fisher_factor(s), o["cautious_wd"]
    if plain:
        rate = plain * s.n["decay"]
        if isinstance(factor, float) and not cautious:
            p.mul_(1 - rate)
        else:
            _pull_(p, p, u, factor, cautious, rate)
    if centered:
        _pull_(p, ANCHORS[o["centered_wd_mode"]].pull(s.store(NAME), p), u, factor, cautious, centered * s.n["decay"])


def _pull_(p: Tensor, distance: Tensor, u: Tensor, factor: Number, cautious: bool, rate: Number) -> None:
    pull = distance * factor
    if cautious:
        pull = torch.where(u * distance >= 0, pull, 0.0)
    add_scaled_(p, pull, -rate)
