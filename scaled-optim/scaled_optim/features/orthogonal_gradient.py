import math

from scaled_optim.arithmetic import unit_dot, unit_norm
from scaled_optim.roles import PER_COLUMN, PER_ROW, WHOLE
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor

MODES = ("disabled", "flattened", "per_rank", "iterative")
TINY = 1e-30
# `iterative`: how often both sides have their turn, and how much of what lies along the parameter is taken away each
# time. Slightly more than all of it converges faster (adv_optm's choice).
ROUNDS, RELAXED = 3, 1.01


def orthogonal_gradient(s: StackStep) -> None:
    """OrthoGrad: `s.g` becomes the gradient without its part along the parameter, at its old length (arXiv 2501.04697).

    g⊥ = g − p·⟨p, g⟩/⟨p, p⟩, then g⊥·‖g‖/‖g⊥‖; over the whole tensor (`flattened`), for each LoRA rank and OFT block by
    itself (`per_rank`), or for every row and every column in turn, three times over, with 1.01 times that part
    (`iterative`; vectors as a whole). Of a gradient that lies along the parameter all but a share below √eps, as every
    gradient of a single number does, only rounding is left; that becomes zero instead of being blown up to the old
    length. A parameter of zero leaves its gradient as it is.
    """
    mode = s.options["orthogonal_gradient"]
    if mode == "disabled":
        return
    if mode == "iterative" and not s.vector:
        s.g = _iterated(s.g, s.p)
        return
    dims = s.role.unit if mode == "per_rank" else WHOLE
    s.g = across(s.g, s.p, dims, unit_norm(s.g, dims))


def _iterated(g: Tensor, p: Tensor) -> Tensor:
    sides = alternating_sides(g)
    lengths = [unit_norm(g, dims) for dims in sides]
    for _ in range(ROUNDS):
        for dims, length in zip(sides, lengths, strict=True):
            g = across(g, p, dims, length, RELAXED)
    return g


def alternating_sides(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Dimensions of the units of both sides of matrices `[b, rows, cols]`, the longer ones, which are fewer, first."""
    return (PER_COLUMN, PER_ROW) if x.shape[1] > x.shape[2] else (PER_ROW, PER_COLUMN)


def across(g: Tensor, p: Tensor, dims: tuple[int, ...], length: Tensor | float, relaxed: float = 1.0) -> Tensor:
    """g − relaxed·p·⟨p, g⟩/⟨p, p⟩ of each unit, at a given length; a fresh tensor.

    Zero where, within rounding, or nearer than the excess of `relaxed` over 1, g lies along p.

    Args:
        g, p: `[b, rows, cols]`.
        dims: that make up a unit.
        length: of every unit afterwards, one number for each or one for all.
    """
    along = unit_dot(p, g, dims) / (unit_norm(p, dims).square_() + TINY)
    left = g.addcmul(p, along, value=-relaxed)
    size = unit_norm(left, dims)
    # at sin(g, p) = relaxed − 1 what is left is √2 of that
    share = math.sqrt(torch.finfo(g.dtype).eps) + math.sqrt(2) * (relaxed - 1)
    gone = size <= unit_norm(g, dims) * share
    return left.mul_((length / (size + TINY)).masked_fill_(gone, 0.0))
