"""Bases of LoRA factors, which do not depend on how the product of two factors is split between them.

A factor is seen as tall, X `[b, n, r]` = U·R with orthonormal columns U; W is R's inverse, so that U = X·W. Axes:
b batch, n the factor's long side, r rank, m its partner's long side.
"""

from scaled_optim.arithmetic import ALIGNMENT
from scaled_optim.features.cholesky import cholesky
from scaled_optim.kernels.eigen import eigen_by_kernel, has_kernel
from scaled_optim.kernels.Runner import Runner

import torch
from torch import Tensor
from torch.nn import functional as F


def eigen(x: Tensor, runner: Runner | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[b, r]`, ascending, and eigenvectors `[b, r, r]` of symmetric non-negative matrices.

    The same to the bit whatever stack a matrix is in. NaN and infinity count as zero: they are in the gradient or the
    factor, too, and spread from there.

    Args:
        runner: of kernels of our own, which don't wait for the device as the library does.
    """
    if has_kernel(x, runner):
        return eigen_by_kernel(x, runner, vectors=True)
    r = x.shape[1]
    values, vectors = torch.linalg.eigh(_filled(x))
    missing = values.shape[1] - r
    return values[:, missing:].contiguous(), vectors[:, :r, missing:].contiguous()


def eigenvalues(x: Tensor, runner: Runner | None = None) -> Tensor:
    """The eigenvalues of `eigen` alone, in half its time."""
    if has_kernel(x, runner):
        return eigen_by_kernel(x, runner, vectors=False)[0]
    values = torch.linalg.eigvalsh(_filled(x))
    return values[:, values.shape[1] - x.shape[1] :].contiguous()


def eigen_beside(x: Tensor, other: Tensor, runner: Runner | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`eigen` of x, and the `eigenvalues` of other, of the same shape.

    Where each call of the library waits for the device they are one call, with eigenvectors that nobody needs.
    """
    if x.device.type == "cpu" or has_kernel(x, runner):
        return *eigen(x, runner), eigenvalues(other, runner)
    values, vectors = eigen(torch.cat([x, other]))
    return values[: len(x)], vectors[: len(x)], values[len(x) :]


def _filled(x: Tensor) -> Tensor:
    """x until matrices begin at multiples of 64 bytes, see `product`; with eigenvalues below its own."""
    x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    r = x.shape[1]
    missing = -r % 4 if r * r % ALIGNMENT else 0
    if not missing:
        return x
    trace = x.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    x = F.pad(x, (0, missing, 0, missing))
    x.diagonal(dim1=1, dim2=2)[:, r:] = -trace
    return x


def unit_basis(gram: Tensor, runner: Runner | None = None) -> tuple[Tensor, Tensor]:
    """W and R `[b, r, r]` of X = U·R, U = X·W, from the Gram matrix XᵀX.

    The columns of U are orthonormal but for κ(X)²·ε. Directions of X whose singular value is below √(2rε) of the
    largest (1/500 for 16 ranks in float32) can't be told from rounding: of them W and R are zero, as of a factor that
    is zero or has not full rank.

    By Cholesky factors, R upper triangular, of matrices that surely have no such direction, by eigenvectors, which take
    twenty times as long, of the others; in a compiled step, which can't tell them apart, and where a kernel of our own
    finds them without waiting, of all.
    """
    if torch.compiler.is_compiling() or has_kernel(gram, runner):
        return _spectral_basis(gram, runner)
    r, info = gram.shape[1], torch.finfo(gram.dtype)
    factor, inverse, failed = cholesky(gram)
    # tr(G)·tr(G⁻¹) and tr(G⁻¹) are at least λ₁/λᵣ and 1/λᵣ
    total, inverse_total = gram.diagonal(dim1=1, dim2=2).sum(1), inverse.square().sum((1, 2))
    sure = (total * inverse_total < 1 / (2 * r * info.eps)) & (inverse_total < 1e-3 / info.tiny) & ~failed
    w, r = inverse.mT.contiguous(), factor.mT.contiguous()
    unsure = (~sure).nonzero()[:, 0]
    if len(unsure):
        w[unsure], r[unsure] = _spectral_basis(gram[unsure])
    return w, r


def _spectral_basis(gram: Tensor, runner: Runner | None = None) -> tuple[Tensor, Tensor]:
    values, vectors = eigen(gram, runner)
    r, info = gram.shape[1], torch.finfo(gram.dtype)
    # beside zeros: a factor so small that the square of its inverse is infinite
    kept = (values > values[:, -1:] * (2 * r * info.eps)) & (values > info.tiny * 1e3)
    roots = torch.where(kept, values, 0.0).sqrt()
    inverse = torch.where(kept, 1 / roots, 0.0)
    return vectors * inverse.unsqueeze(1), (vectors * roots.unsqueeze(1)).mT.contiguous()


def inverse_roots(values: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The eigenvalues 1/(√(λ + shift) + ε) `[b, r]` of (V + shift)^(−1/2).

    λ + shift counts as at least 2rε of the largest, so that the rounding of a gradient with less than r directions is
    not blown up to the size of a step. Zero where V is zero.

    Args:
        values: λ of V, see `eigen`.
        shift: `[b, 1]`, at least 0.
        eps: at least 0.
    """
    lifted = values.clamp(min=0) + shift
    largest = lifted[:, -1:]
    lifted = torch.maximum(lifted, largest * (2 * values.shape[1] * torch.finfo(values.dtype).eps))
    roots = lifted.sqrt() + eps
    usable = lifted > torch.finfo(values.dtype).tiny
    return torch.where(usable, 1 / torch.where(usable, roots, 1.0), 0.0)
