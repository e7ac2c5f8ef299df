"""One step of one stack, from gradients to new parameters: the order in which the features meet."""

from scaled_optim.features.orthogonal_gradient import orthogonal_gradient
from scaled_optim.features.weight_decay import decay_
from scaled_optim.kernels.fused_step import fits, fused_step
from scaled_optim.kernels.trial import kind_of
from scaled_optim.rules.Rule import Rule
from scaled_optim.StackStep import StackStep

from torch import Tensor


def advance(rule: Rule, *steps: StackStep) -> list[Tensor | None]:
    """Steps the parameters in place: decay, then p ← p − lr·gain·u, or p ← p − lr·T(u) with scaled steps.

    Args:
        steps: of one stack, or of the two stacks of a pair, of which none moves before both directions are known.

    Returns:
        for each the step, lr·gain·u or lr·T(u), for statistics, up to the factor `s.rate`; None if there is nothing to
        show.
    """
    for s in steps:
        if fits(rule, s) and s.runner.trusted(kind_of(rule, s), lambda s=s: s.trial(rule, s)):
            return [fused_step(rule, s)]
        orthogonal_gradient(s)
        if rule.step_at_once(s):
            s.rate = s.n["lr"] * s.n["gain"]
            return [rule.last_direction(s) if s.watched else None]
    directions = rule.directions(steps)
    return [None if u is None else _move(rule, s, u) for s, u in zip(steps, directions, strict=True)]


def _move(rule: Rule, s: StackStep, u: Tensor) -> Tensor:
    rate = s.n["lr"]
    if s.options["scaled_optm"]:
        u = rule.scaled(s, u)
    else:
        rate = rate * s.n["gain"]
    if s.size is not None:
        u.mul_(s.size)
    decay_(s, u)
    rule.descend_(s, u, rate)
    s.rate = rate
    return u
