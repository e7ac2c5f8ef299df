"""The best low-rank copy of a change of weights, and how much of the change it loses.

Axes: `o` out, `i` in, `k` kernel height and width, `r` rank. A convolution's kernel counts as a matrix `[o, i·k·k]`,
which is how a LoRA on it sees it: a `k x k` convolution to `r` channels, then a `1 x 1` convolution.
"""

import math

from modules.module.factored_svd import factored_svd

import torch
from torch import Tensor

# Singular values below this share of the largest are rounding of float32 data, which a factor should not hold.
NEGLIGIBLE = 1e-7


@torch.no_grad()
def best_lora(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The LoRA of a rank that is nearest to `delta` in the sum of squares: the truncated SVD (Eckart and Young).

    Computed in float64 through the Gram matrix of the smaller side, which is several times faster than an SVD and
    exact to far below float32. Both factors carry the square root of each singular value.

    Args:
        delta: `[o, i]` or `[o, i, kh, kw]`, of any floating dtype and device.
        rank: of the copy, at least 1. A smaller side of the matrix limits it.

    Returns:
        down `[r, i(, kh, kw)]` and up `[o, r(, 1, 1)]`, float32, with ΔW ≈ up·down, so that alpha is to be the rank
        `r = min(rank, o, i·kh·kw)`; and the relative error ‖ΔW − up·down‖/‖ΔW‖ in [0, 1], 0 for a ΔW of zeros.

    Raises:
        ValueError: a rank below 1, a shape that is no layer's, NaN or infinite values.
    """
    if rank < 1 or delta.dim() not in (2, 4):
        raise ValueError(f"expected rank >= 1 and a matrix or a kernel, found {rank} and the shape {list(delta.shape)}")
    matrix = delta.detach().flatten(1).double()
    if not torch.isfinite(matrix).all():
        raise ValueError("the change holds NaN or infinite values")
    rank = min(rank, *matrix.shape)
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.t() if wide else matrix.t() @ matrix
    squares, vectors = torch.linalg.eigh(gram)  # ascending
    sigma = squares.flip(0)[:rank].clamp(min=0).sqrt()
    vectors = vectors.flip(1)[:, :rank]
    roots, inverse = _balanced(sigma)
    if wide:
        up, down = vectors * roots, inverse[:, None] * (vectors.t() @ matrix)
    else:
        up, down = (matrix @ vectors) * inverse, roots[:, None] * vectors.t()
    total = gram.diagonal().sum()
    # the projection's own norm rather than the eigenvalues: their rounding would show where nothing is lost
    kept = (vectors.t() @ matrix if wide else matrix @ vectors).square().sum()
    error = math.sqrt(max(0.0, 1 - (kept / total).item())) if total > 0 else 0.0
    return *_shaped(down, up, delta.shape), error


@torch.no_grad()
def best_lora_of_factors(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """`best_lora` of the product up·down, without ever forming it: QR of both factors, SVD of an r x r matrix.

    Args:
        down: `[r, i(, kh, kw)]`.
        up: `[o, r(, 1, 1)]`.
        rank: of the result; the old rank and the sides of the matrix limit it.

    Returns:
        as `best_lora`.

    Raises:
        ValueError: a rank below 1, NaN or infinite values.
    """
    if rank < 1:
        raise ValueError(f"expected rank >= 1, found {rank}")
    outer, left, sigma, right, inner = factored_svd(down, up)
    rank = min(rank, len(sigma))
    roots, _ = _balanced(sigma[:rank])
    new_up = (outer @ left[:, :rank]) * roots
    new_down = roots[:, None] * (right[:rank] @ inner)
    total = sigma.square().sum()
    error = (sigma[rank:].square().sum() / total).sqrt().item() if total > 0 else 0.0
    shape = torch.Size((up.shape[0], *down.shape[1:]))
    return *_shaped(new_down, new_up, shape), error


def _balanced(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """√σ and 1/√σ; both 0 where σ is only rounding."""
    real = sigma > NEGLIGIBLE * sigma[:1]
    return torch.where(real, sigma.sqrt(), 0.0), torch.where(real, sigma.rsqrt(), 0.0)


def _shaped(down: Tensor, up: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Matrices as a LoRA of a layer with the weight shape `shape` holds them, float32."""
    rank = down.shape[0]
    ones = (1,) * (len(shape) - 2)
    return (
        down.float().reshape(rank, *shape[1:]).contiguous(),
        up.float().reshape(shape[0], rank, *ones).contiguous(),
    )
