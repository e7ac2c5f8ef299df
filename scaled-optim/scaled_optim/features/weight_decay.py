"""Every kind of weight decay: standard, centered, Fisher, cautious, and which parameter gets which."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.anchors import ANCHORS
from scaled_optim.arithmetic import Number, add_scaled_, root_mean_square
from scaled_optim.roles import Role
from scaled_optim.scaling import block_size
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
    M = [u·δ ≥ 0] for cautious decay (arXiv 2510.12402), else 1. Geometric decay has `s.pull` of δ instead of δ.
    """
    o = s.options
    share = plain_decay(s)
    if share is not None:
        if isinstance(share, Tensor) or share:
            s.shrink_(1 - share)
        return
    plain, centered = decay_rates(o, s.role)
    weighed, divisor, rate = s.p, None, s.n["decay"]
    if o.get("geometric_wd") and s.pull is not None:
        _geometric_decay_(s, u, plain * rate, centered * rate)
        return
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


def _geometric_decay_(s: StackStep, u: Tensor, plain: Number, centered: Number) -> None:
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
    """The share of the parameters that this step's decay takes away; None where it takes more than one number."""
    plain, centered = decay_rates(s.options, s.role)
    special = s.options["cautious_wd"] or s.options.get("fisher_wd") or s.options.get("geometric_wd")
    if centered or (plain and special):
        return None
    return plain * s.n["decay"] if plain else 0.0


def decoupled(options: Mapping[str, Any]) -> bool:
    """Whether decay does not depend on the learning rate, only on the schedule."""
    return options["scaled_optm"] or options["scaled_wd"]


def decay_share(options: Mapping[str, Any], role: Role, rows: int, cols: int, partner: tuple[int, int] | None) -> float:
    """What `scaled_wd` multiplies decay with: 1/width, and 2/b for OFT blocks of b; 1 without it.

    The width of a matrix is its inputs, that of a vector or DoRA scale its length. Of both factors of a LoRA it is the
    layer's inputs, which are the down factor's, so that ΔW decays by the same law as a full weight of that layer,
    (1 − wd/width)² a step, whatever the rank and the outputs. An up factor whose partner is not known has its outputs.

    Args:
        partner: `(rows, cols)` of the other factor of a LoRA.
    """
    if not options["scaled_wd"]:
        return 1.0
    if role.name == "OFT":
        return 2 / block_size(cols)
    if role.vector:
        return 1 / (rows * cols)
    if role.name == "LORA_UP":
        return 1 / (partner[1] if partner else rows)
    return 1 / cols


def _pull_(s: StackStep, distance: Tensor, pull: Tensor, u: Tensor, rate: Number) -> None:
    """p ← p − rate·M·pull, M = [u·distance ≥ 0] for cautious decay, else 1."""
    if s.options["cautious_wd"]:
        # a mask of numbers: masks of bools are several times slower
        pull = (u * distance).ge_(0).mul_(pull)
    add_scaled_(s.p, pull, -rate)
