"""The Stiefel manifold: matrices B `[o, r]`, o ≥ r, with orthonormal columns, BᵀB = 1. Axes: b batch, r rank, o out."""

from collections.abc import Sequence

from scaled_optim.arithmetic import decomposable, plus_product_, product, wide
from scaled_optim.features.cholesky import cholesky
from scaled_optim.roles import matrix_shape

import torch
from torch import Tensor

# Largest |BᵀB − 1| of a start value that counts as orthonormal. Rounding to nearest bfloat16 moves columns of length 1
# by 2⁻⁹ at most, so a product of two by 2⁻⁸; half as much again for parameters that were rounded stochastically.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def tangent_(b: Tensor, u: Tensor) -> Tensor:
    """u − B·sym(Bᵀu), the part of u along which columns stay orthonormal to first order (arXiv 2508.17901).

    It is the orthogonal projection to the tangent space {t: Bᵀt + tᵀB = 0} in the Euclidean metric.

    Args:
        b: `[b, o, r]` with orthonormal columns.
        u: `[b, o, r]`.

    Returns:
        u, changed in place.
    """
    inner = product(b.mT, u)
    return plus_product_(u, b, (inner + inner.mT).mul_(-0.5))


def retracted(x: Tensor, passes: int = 2) -> Tensor:
    """Q of x = QR with positive diagonal of R, by Cholesky-QR; a new tensor `[b, o, r]`.

    A step of length η along a tangent gives xᵀx = 1 + η²tᵀt, whose eigenvalues are from 1 to 1 + η² if σ₁(t) = 1, so
    the factorisation can't fail. One pass leaves |QᵀQ − 1| of κ(x)²·ε, with κ² = 1 + η² then, two leave ε for every x
    with κ(x) below 1/√ε. Where it fails all the same, x being no step from the manifold, its diagonal is raised by the
    size of rounding first; columns that depend on others then come out short instead of as NaN. What is not finite
    stays so. Nothing waits for the device.
    """
    for _ in range(passes):
        _, inverse, _ = cholesky(product(x.mT, x), raised=True)
        x = product(x, inverse.mT)
    return x


def orthonormality_error(up: Tensor) -> Tensor:
    """max |BᵀB − 1| of an up factor `[o, r]` or `[o, r, 1, 1]`, a 0-dim tensor; NaN if it is not finite."""
    tall = wide(up.detach().reshape(matrix_shape(tuple(up.shape))))
    return (tall.mT @ tall - torch.eye(tall.shape[1], dtype=tall.dtype, device=tall.device)).abs().max()


@torch.no_grad()
def make_orthonormal_(down: Tensor, up: Tensor) -> bool:
    """B ← Q and A ← R·A of B = QR, which keeps the product B·A but for rounding; False if B has not full rank.

    Args:
        down: A, `[r, i]` or `[r, i, kh, kw]`. Changed in place.
        up: B, `[o, r]` or `[o, r, 1, 1]`, r ≤ o. Changed in place.
    """
    q, r = torch.linalg.qr(decomposable(up.reshape(matrix_shape(tuple(up.shape)))))
    diagonal = r.diagonal()
    rank = torch.linalg.matrix_rank(r, rtol=torch.finfo(up.dtype).eps * max(up.shape))
    if rank < r.shape[1]:
        return False
    signs = diagonal.sign()
    up.copy_((q * signs).view(up.shape))
    down.copy_((signs[:, None] * r @ decomposable(down.flatten(1))).view(down.shape))
    return True


def worst(errors: Sequence[Tensor]) -> int:
    """Which of several 0-dim tensors is the largest; one that is NaN comes first."""
    return int(torch.stack(list(errors)).nan_to_num(torch.inf).argmax())
