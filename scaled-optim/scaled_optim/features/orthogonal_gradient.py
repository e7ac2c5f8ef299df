import math

from scaled_optim.arithmetic import unit_dot, unit_norm
from scaled_optim.roles import WHOLE
from scaled_optim.StackStep import StackStep

import torch

MODES = ("disabled", "flattened", "per_rank")
TINY = 1e-30


def orthogonal_gradient(s: StackStep) -> None:
    """OrthoGrad: `s.g` becomes the gradient without its part along the parameter, at its old length (arXiv 2501.04697).

    g⊥ = g − p·⟨p, g⟩/⟨p, p⟩, then g⊥·‖g‖/‖g⊥‖; over the whole tensor (`flattened`), or for each LoRA rank and OFT
    block by itself (`per_rank`). A parameter of zero leaves its gradient as it is. Of a gradient that lies along the
    parameter all but a share below √eps, as every gradient of a single number does, only rounding is left; that becomes
    zero instead of being blown up to the old length.
    """
    mode = s.options["orthogonal_gradient"]
    if mode == "disabled":
        return
    dims = s.role.unit if mode == "per_rank" else WHOLE
    g, p = s.g, s.p
    along = unit_dot(p, g, dims) / (unit_norm(p, dims).square_() + TINY)
    across = g.addcmul(p, along, value=-1)
    length, left = unit_norm(g, dims), unit_norm(across, dims)
    rounding = left <= length * math.sqrt(torch.finfo(g.dtype).eps)
    s.g = across.mul_((length / (left + TINY)).masked_fill_(rounding, 0.0))
