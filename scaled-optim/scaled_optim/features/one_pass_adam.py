"""Adam's moments, with its direction or its whole step, by torch's fused kernel: one pass over memory instead of ten.

The kernel is given one tensor for each parameter, so that what a parameter gets does not depend on its stack. Its own
bias correction is switched off by a step number without end; ours comes as factors: m/(√v/r + ε) = r·m/(√v + r·ε).
"""

import math
from functools import lru_cache

from scaled_optim.arithmetic import Number
from scaled_optim.features.moments import FIRST, SECOND, SLOW
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor

# Each asks for another direction than m/(√v + ε).
OTHERWISE = ("use_atan2", "normed_momentum", "nesterov", "Simplified_AdEMAMix")


def fits_one_pass(s: StackStep, beta2: Number) -> bool:
    """Whether the step is plain Adam's, of a kind and on a device that the kernel serves.

    The kernel takes numbers of the host. On a GPU, reading those that are tensors would wait for it.
    """
    plain = s.has(FIRST) and not s.has(SLOW) and not any(s.options.get(key) for key in OTHERWISE)
    known = s.device.type == "cpu" or not any(isinstance(s.n[key], Tensor) for key in ("lr", "decay"))
    return s.one_pass and plain and known and not isinstance(beta2, Tensor)


def one_pass_direction(
    s: StackStep, gradients: list[Tensor], beta2: float, eps: Number, root: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Updates both moments; returns u = m/(√v/root + ε) and v, as `[b, rows, cols]`. v may be the state."""
    u = torch.zeros(s.shape, dtype=s.dtype, device=s.device)
    v = _fused(s, s.parameters.views_of(u), gradients, beta2, -root, eps * root, 0.0)
    return u, v


def one_pass_step_(s: StackStep, beta2: float, eps: float, root: float, rate: Number, decay: Number) -> None:
    """Updates both moments and the parameters: p ← (1 − decay)·p − rate·m/(√v/root + ε)."""
    _fused(s, s.parameters.each(), s.gradients.each(), beta2, rate * root, eps * root, decay)


def _fused(
    s: StackStep, targets: list[Tensor], gradients: list[Tensor], beta2: float, lr: Number, eps: Number, decay: Number
) -> Tensor:
    lr, eps, decay = float(lr), float(eps), float(decay)
    m, v = s.read(FIRST), s.read(SECOND)
    torch._fused_adamw_(
        targets, gradients, *(s.parameters.views_of(moment) for moment in (m, v)), [],
        [_endless(s.device)] * len(targets),
        lr=lr, beta1=s.options["beta1"], beta2=beta2, weight_decay=decay / lr if lr else 0.0, eps=eps,
        amsgrad=False, maximize=False,
    )  # fmt: skip
    s.write(FIRST, m)
    s.write(SECOND, v)
    return v


@lru_cache(maxsize=16)
def _endless(device: torch.device) -> Tensor:
    return torch.full((), math.inf, device=device)
