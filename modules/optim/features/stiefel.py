"""The Stiefel manifold: matrices B `[o, r]`, o ≥ r, with orthonormal columns, BᵀB = 1. Axes: b batch, r rank, o out."""

from collections.abc import Sequence

from modules.optim.arithmetic import ALIGNMENT, product
from modules.optim.roles import matrix_shape

import torch
from torch import Tensor
from torch.nn import functional as F

# Largest |BᵀB − 1| of a start value that counts as orthonormal. Rounding to nearest bfloat16 moves columns of length 1
# by 2⁻⁹ at most, so a product of two by 2⁻⁸; half as much again for parameters that were rounded stochastically.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def tangent(b: Tensor, u: Tensor) -> Tensor:
    """u − B·sym(Bᵀu), the part of u along which columns stay orthonormal to first order (arXiv 2508.17901).

    It is the orthogonal projection to the tangent space {t: Bᵀt + tᵀB = 0} in the Euclidean metric.

    Args:
        b: `[b, o, r]` with orthonormal columns.
        u: `[b, o, r]`.

    Returns:
        a new tensor.
    """
    inner = product(b.mT, u)
    return u - product(b, (inner + inner.mT).mul_(0.5))


def retracted(x: Tensor) -> Tensor:
    """Q of x = QR with positive diagonal of R, by Cholesky-QR twice; a new tensor `[b, o, r]`.

    A step of length η along a tangent gives xᵀx = 1 + η²tᵀt, whose eigenvalues are from 1 to 1 + η² if σ₁(t) = 1, so
    the factorisation can't fail, and the second pass takes what rounding has left, κ(x)²·ε, to ε. Where it fails all
    the same, x being no step from the manifold, its diagonal is raised by the size of rounding first; columns that
    depend on others then come out short instead of as NaN. What is not finite stays so. Nothing waits for the device.
    """
    for _ in range(2):
        x = product(x, _inverse_factor(product(x.mT, x)))
    return x


def _inverse_factor(gram: Tensor) -> Tensor:
    """R⁻¹ of RᵀR `[b, r, r]`, the same to the bit whatever stack a matrix is in."""
    r = gram.shape[1]
    # matrices begin at multiples of 64 bytes, see `product`; beside the ones on the diagonal are zeros
    missing = -r % 4 if r * r % ALIGNMENT else 0
    if missing:
        gram = F.pad(gram, (0, missing, 0, missing))
        gram.diagonal(dim1=1, dim2=2)[:, r:] = 1
    factor, failed = torch.linalg.cholesky_ex(gram)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    raised, _ = torch.linalg.cholesky_ex(gram + identity * (trace * (8 * torch.finfo(gram.dtype).eps)))
    factor = torch.where(failed[:, None, None] > 0, raised, factor)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(gram), upper=False).mT
    return inverse[:, :r, :r].contiguous()


def orthonormality_error(up: Tensor) -> Tensor:
    """max |BᵀB − 1| of an up factor `[o, r]` or `[o, r, 1, 1]`, a 0-dim tensor; NaN if it is not finite."""
    tall = up.detach().reshape(matrix_shape(tuple(up.shape))).double()
    return (tall.mT @ tall - torch.eye(tall.shape[1], dtype=tall.dtype, device=tall.device)).abs().max()


@torch.no_grad()
def make_orthonormal_(down: Tensor, up: Tensor) -> bool:
    """B ← Q and A ← R·A of B = QR, which keeps the product B·A but for rounding; False if B has not full rank.

    Args:
        down: A, `[r, i]` or `[r, i, kh, kw]`. Changed in place.
        up: B, `[o, r]` or `[o, r, 1, 1]`, r ≤ o. Changed in place.
    """
    q, r = torch.linalg.qr(up.reshape(matrix_shape(tuple(up.shape))).double())
    diagonal = r.diagonal()
    rank = torch.linalg.matrix_rank(r, rtol=torch.finfo(up.dtype).eps * max(up.shape))
    if rank < r.shape[1]:
        return False
    signs = diagonal.sign()
    up.copy_((q * signs).view(up.shape))
    down.copy_((signs[:, None] * r @ down.flatten(1).double()).view(down.shape))
    return True


def worst(errors: Sequence[Tensor]) -> int:
    """Which of several 0-dim tensors is the largest; one that is NaN comes first."""
    return int(torch.stack(list(errors)).nan_to_num(torch.inf).argmax())
