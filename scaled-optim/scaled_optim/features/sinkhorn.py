"""Rows and columns of one size: the normalisation of Sinkhorn-normalised SGD, and decay in its geometry.

Axes: b batch, n rows, m columns.
"""

import math

from scaled_optim.arithmetic import arctangent, unit_norm, unit_sum, zero_length
from scaled_optim.features.orthogonal_gradient import across, alternating_sides
from scaled_optim.roles import PER_COLUMN, PER_ROW

import torch
from torch import Tensor


def sinkhorn(x: Tensor, iterations: int, beside: Tensor | None = None) -> Tensor:
    """Matrices whose rows and columns have RMS 1, by normalising them in turn (arXiv 2502.06742); a fresh tensor.

    x ← √m·x/‖row‖ for each row, then x ← √n·x/‖column‖ for each column, `iterations` times; the side with the longer
    vectors comes first, so that the last vectors to be normalised are exact. It is Sinkhorn's algorithm on x², so the
    other side converges geometrically, where there are no zeros in the way. Rows and columns of zeros stay zero, those
    shorter than `zero_length` shrink. The size of x does not count.

    Args:
        x: `[b, n, m]`.
        iterations: at least 1.
        beside: p `[b, n, m]`: after every normalisation what lies along the row or column of p is taken away.
    """
    for _ in range(iterations):
        for dims in alternating_sides(x):
            length = math.sqrt(x.shape[dims[0]])
            x = x * (length / unit_norm(x, dims).clamp_(min=zero_length(x.dtype)))
            if beside is not None:
                x = across(x, beside, dims, length)
    return x


def structured_pull(x: Tensor, doubts: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """x·r·c: decay that is stronger for larger rows and columns, in the mean over the matrix as strong as for x.

    r = √‖row‖ and c = √‖column‖, with `doubts` (d, e) atan2(r, d) and atan2(c, e), each divided by its mean. A fresh
    tensor.

    Args:
        x: `[b, n, m]`.
        doubts: `[b, n, 1]` and `[b, 1, m]`, the share of noise in the directions of the rows and the columns.
    """
    factors = []
    for k, dims in enumerate((PER_ROW, PER_COLUMN)):
        size = unit_norm(x, dims).sqrt()
        if doubts is not None:
            size = arctangent(size, doubts[k])
        other = 3 - dims[0]
        mean = unit_sum(size, (other,)) / size.shape[other]
        factors.append(size / mean.clamp_(min=torch.finfo(x.dtype).tiny))
    return x * factors[0] * factors[1]
