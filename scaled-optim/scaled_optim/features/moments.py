"""Running means of gradients and of their squares, and the directions that are read off them."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import Number, add_scaled_
from scaled_optim.codecs import CODECS
from scaled_optim.roles import Role
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

FIRST, SLOW, SECOND = "exp_avg", "exp_avg_slow", "exp_avg_sq"


def moment_slot(name: str, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> Slot:
    """A moment in the codec that the options ask for. `factored_2nd` factors the second moment alone; vectors are
    too small to factor.
    """
    second = name == SECOND
    codec = "factored" if options["nnmf_factor"] or (second and options["factored_2nd"]) else options["state_precision"]
    if codec == "auto" or (codec == "factored" and min(rows, cols) == 1 and not role.matrix):
        codec = "fp32"
    return Slot(name, CODECS[codec], signed=not second)


def first_moment(s: StackStep, x: Tensor, beta1: float) -> Tensor:
    """m ← β₁·m + (1 − β₁)·x; returns m, or with Nesterov c·m + (1 − c)·x. Don't change the result."""
    if not s.has(FIRST):
        return x
    o, m = s.options, s.read(FIRST)
    if o.get("Simplified_AdEMAMix"):
        # arXiv 2502.02431: an accumulator, and the newest gradient once more
        m.mul_(beta1).add_(x)
        direction = torch.add(m, x, alpha=o["alpha_grad"])
    else:
        m.lerp_(x, 1 - beta1)
        direction = m
        if o["nesterov"]:
            direction = torch.lerp(x, m, beta1 if o["nesterov_coef"] is None else o["nesterov_coef"])
    s.write(FIRST, m)
    return direction


def with_slow_moment(s: StackStep, direction: Tensor, x: Tensor) -> Tensor:
    """AdEMAMix: direction + α·m₂ with a mean m₂ that forgets far more slowly (arXiv 2409.03137).

    m₂ has no bias correction. The direction's is in the step size, so the number `slow_weight` takes it out again.
    """
    if not s.has(SLOW):
        return direction
    slow = s.read(SLOW)
    slow.lerp_(x, 1 - s.options["beta3_ema"])
    s.write(SLOW, slow)
    return add_scaled_(direction.clone(), slow, s.n["slow_weight"])


def second_moment(s: StackStep, x: Tensor, beta2: Number) -> Tensor:
    """v ← β₂·v + (1 − β₂)·x². β₂ is a number or one per unit. Don't change the result."""
    v = s.read(SECOND)
    if isinstance(beta2, Tensor):
        v.lerp_(x * x, 1 - beta2)
    else:
        v.mul_(beta2).addcmul_(x, x, value=1 - beta2)
    s.write(SECOND, v)
    return v
