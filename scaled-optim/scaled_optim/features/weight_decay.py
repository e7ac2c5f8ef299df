"""Every kind of weight decay: standard, centered, Fisher, cautious, and which parameter gets which."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.anchors import ANCHORS
from scaled_optim.arithmetic import Number, add_scaled_, root_mean_square
from scaled_optim.features.decay_portions import owed_slots, portion, take_
from scaled_optim.features.decay_rates import decay_rates
from scaled_optim.roles import Role
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

NAME = "anchor"
# Where there was no gradient yet the divisor is ε, which may be tiny, or with atan2 0. 1/SMALLEST² is still finite.
SMALLEST = 1e-15


def decay_slots(options: Mapping[str, Any], role: Role) -> list[Slot]:
    """Where the parameters started, for those that are pulled there, and what they owe."""
    slots = owed_slots(options, role)
    if decay_rates(options, role)[1]:
        anchor = ANCHORS[options["centered_wd_mode"]]
        slots.append(Slot(NAME, create=lambda p, keys: anchor.create(p)))
    return slots


def decay_(s: StackStep, u: Tensor | None) -> None:
    """Decays the parameters `s.p` in place, before the step; where decay is small, only now and then, see `portion`.

    p ← p − c·F·M·δ for both kinds, δ = p or p − p₀, c = rate·`s.n["decay"]`, F Fisher's factor,
    M = [u·δ ≥ 0] for cautious decay (arXiv 2510.12402), else 1. Geometric decay has `s.pull` of δ instead of δ.

    Args:
        u: the direction; None where `plain_decay` is a number.
    """
    if not any(decay_rates(s.options, s.role)):
        return
    if s.n["portions"]:
        due = portion(s)
        if due is not None:
            _decay_by_(s, u, due)
        return
    share = plain_decay(s)
    if s.n["through"]:
        _decay_through_(s, u)
    elif share is None:
        _decay_by_(s, u, s.n["decay"])
    elif isinstance(share, Tensor) or share:
        s.shrink_(1 - share)


def _decay_through_(s: StackStep, u: Tensor) -> None:
    """u ← u + decay per unit of the learning rate, so that decay and step are rounded together, once.

    For rules whose learning rate, and so how small decay is, only the device knows. What u does from step to step
    keeps the rounding from going the same way each time, as long as a step is not below it itself.
    """
    plain = decay_rates(s.options, s.role)[0]
    if plain_decay(s) is None:
        gathered = torch.zeros_like(u)
        _decay_by_(s, u, 1.0, gathered)
        u.sub_(gathered)
    elif s.parameters.direct:
        torch._foreach_add_(s.parameters.views_of(u), s.parameters.each(), alpha=plain)
    else:
        u.add_(s.p, alpha=plain)


def _decay_by_(s: StackStep, u: Tensor | None, rate: Number, target: Tensor | None = None) -> None:
    """Both kinds of decay, at a rate of one number or of one for each parameter `[b, 1, 1]`, of `s.p` or a `target`."""
    o = s.options
    plain, centered = decay_rates(o, s.role)
    weighed, divisor = s.p, None
    if o.get("geometric_wd") and s.pull is not None:
        _geometric_decay_(s, u, plain * rate, centered * rate)
        return
    if o.get("fisher_wd"):
        # F = 1/D becomes F/max(1, RMS(p·F)) (FAdam, arXiv 2405.12807)
        divisor = s.denominator.clamp_(min=SMALLEST)
        weighed = s.p / divisor
        rate = rate / root_mean_square(weighed).clamp_(min=1)
    if plain:
        _pull_(s, s.p, weighed, u, plain * rate, target)
    if centered:
        away = ANCHORS[o["centered_wd_mode"]].pull(s.store(NAME), s.p)
        _pull_(s, away, away if divisor is None else away / divisor, u, centered * rate, target)


def _geometric_decay_(s: StackStep, u: Tensor | None, plain: Number, centered: Number) -> None:
    """Both kinds, along `s.pull` of their distances before the step, in which every number is moved."""
    distances = []
    if decay_rates(s.options, s.role)[0]:
        distances.append((s.p, plain))
    if decay_rates(s.options, s.role)[1]:
        distances.append((ANCHORS[s.options["centered_wd_mode"]].pull(s.store(NAME), s.p), centered))
    pulls = [(s.pull(distance), rate) for distance, rate in distances]
    for pull, rate in pulls:
        # a pull has the signs of its distance
        _pull_(s, pull, pull, u, rate)


def plain_decay(s: StackStep) -> Number | None:
    """The share of the parameters that a step's decay takes away; None where it takes more than one number."""
    plain, centered = decay_rates(s.options, s.role)
    special = s.options["cautious_wd"] or s.options.get("fisher_wd") or s.options.get("geometric_wd")
    if centered or (plain and special):
        return None
    return plain * s.n["decay"] if plain else 0.0


def _pull_(
    s: StackStep, distance: Tensor, pull: Tensor, u: Tensor | None, rate: Number, target: Tensor | None = None
) -> None:
    """p ← p − rate·M·pull, M = [u·distance ≥ 0] for cautious decay, else 1; portions are rounded at random.

    Args:
        target: what is changed in the place of p.
    """
    if s.options["cautious_wd"]:
        # a mask of numbers: masks of bools are several times slower
        pull = (u * distance).ge_(0).mul_(pull)
    if s.n["portions"]:
        take_(s, pull, rate)
    else:
        add_scaled_(s.p if target is None else target, pull, -rate)
