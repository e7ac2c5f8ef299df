"""Every kind of weight decay: standard, centered, Fisher, cautious, and which parameter gets which."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.anchors import ANCHORS
from scaled_optim.arithmetic import Number, add_scaled_, root_mean_square
from scaled_optim.roles import Role
from scaled_optim.StackStep import Slot, StackStep

from torch import Tensor

NAME = "anchor"
# Where there was no gradient yet the divisor is ε, which may be tiny, or with atan2 0. 1/SMALLEST² is still finite.
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


def decay_(s: StackStep, u: Tensor) -> None:
    """Decays the parameters `s.p` in place, before the step.

    p ← p − c·F·M·δ for both kinds, δ = p or p − p₀, c = rate·`s.n["decay"]`, F Fisher's factor,
    M = [u·δ ≥ 0] for cautious decay (arXiv 2510.12402), else 1.
    """
    o = s.options
    share = plain_decay(s)
    if share is not None:
        if isinstance(share, Tensor) or share:
            s.shrink_(1 - share)
        return
    plain, centered = decay_rates(o, s.role)
    weighed, divisor, rate = s.p, None, s.n["decay"]
    if o.get("fisher_wd"):
        # F = 1/D becomes F/max(1, RMS(p·F)) (FAdam, arXiv 2405.12807)
        divisor = s.denominator.clamp_(min=SMALLEST)
        weighed = s.p / divisor
        rate = rate / root_mean_square(weighed).clamp_(min=1)
    if plain:
        _pull_(s, s.p, weighed, u, plain * rate)
    if centered:
        away = ANCHORS[o["centered_wd_mode"]].pull(s.store(NAME), s.p)
        _pull_(s, away, away if divisor is None else away / divisor, u, centered * rate)


def plain_decay(s: StackStep) -> Number | None:
    """The share of the parameters that this step's decay takes away; None where it takes more than one number."""
    plain, centered = decay_rates(s.options, s.role)
    special = s.options["cautious_wd"] or s.options.get("fisher_wd")
    if centered or (plain and special):
        return None
    return plain * s.n["decay"] if plain else 0.0


def _pull_(s: StackStep, distance: Tensor, pull: Tensor, u: Tensor, rate: Number) -> None:
    """p ← p − rate·M·pull, M = [u·distance ≥ 0] for cautious decay, else 1."""
    if s.options["cautious_wd"]:
        # a mask of numbers: masks of bools are several times slower
        pull = (u * distance).ge_(0).mul_(pull)
    add_scaled_(s.p, pull, -rate)
