"""One step of one stack, from gradients to new parameters: the order in which the features meet."""

from modules.optim.features.orthogonal_gradient import orthogonal_gradient
from modules.optim.features.weight_decay import decay_
from modules.optim.rules.Rule import Rule
from modules.optim.scaling import scaled
from modules.optim.StackStep import StackStep

from torch import Tensor


def advance(rule: Rule, s: StackStep) -> Tensor | None:
    """Steps the parameters in place: decay, then p ← p − lr·gain·u, or p ← p − lr·T(u) with scaled steps.

    Returns:
        the step, lr·gain·u or lr·T(u), for statistics, up to the factor `s.rate`; None if there is nothing to show.
    """
    orthogonal_gradient(s)
    if rule.step_at_once(s):
        s.rate = s.n["lr"] * s.n["gain"]
        return rule.last_direction(s) if s.watched else None
    u = rule.direction(s)
    if u is None:
        return None
    rate = s.n["lr"]
    if s.options["scaled_optm"]:
        u = scaled(s, u)
    else:
        rate = rate * s.n["gain"]
    if s.size is not None:
        u.mul_(s.size)
    decay_(s, u)
    s.descend_(u, rate)
    s.rate = rate
    return u
