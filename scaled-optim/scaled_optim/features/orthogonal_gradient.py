import math

from scaled_optim.arithmetic import unit_dot, unit_norm
from scaled_optim.roles import WHOLE
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor

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
    s.g = across.mul_(_stretch(length, left, g.dtype))


def scale_across(gg: Tensor, gp: Tensor, pp: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The share a and the factor f of g⊥ = f·(g − a·p), from the sums of g², g·p and p² of each unit in float64.

    Args:
        dtype: of the gradients, which says what is only rounding.
    """
    along = gp / (pp + TINY)
    left = (gg - 2 * along * gp + along.square() * pp).clamp_(min=0)
    return along, _stretch(gg.sqrt(), left.sqrt_(), dtype)


def _stretch(length: Tensor, left: Tensor, dtype: torch.dtype) -> Tensor:
    """What brings a gradient of which `left` is left back to its length; 0 where that is only rounding."""
    rounding = left <= length * math.sqrt(torch.finfo(dtype).eps)
    return (length / (left + TINY)).masked_fill_(rounding, 0.0)
