"""The nearest orthogonal matrix to a direction, for the Muon family."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from scaled_optim.arithmetic import aligned, product, unit_norm
from scaled_optim.noise import uniform_bits
from scaled_optim.roles import WHOLE

import torch
from torch import Tensor

# Muon's quintic (Jordan et al. 2024): not exact, singular values end between 0.7 and 1.2, but steep at zero.
QUINTIC = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
DTYPES = ("float32", "bfloat16")


def orthogonalized(x: Tensor, options: Mapping[str, Any], keys: Callable[[], Tensor]) -> Tensor:
    """U·Vᵀ of x = U·S·Vᵀ for each matrix of the stack, by Newton–Schulz iterations.

    `accelerated_ns`: Chebyshev-optimal cubic steps (CANS, arXiv 2506.10935) instead of Muon's quintic.
    `ns_dtype`: in which dtype, see `newton_schulz`.
    `low_rank_ortho`: only within the range of a random sketch of `ortho_rank` columns, exact in that range.

    Args:
        keys: makes the noise keys `[b]` of the sketch, which only `low_rank_ortho` needs.
    """
    b, rows, cols = x.shape
    bound = max(1 / math.sqrt(rows * cols), abs(1 / math.sqrt(rows) - 1 / math.sqrt(cols)))
    steps = cubic_steps(bound, options["ns_steps"]) if options["accelerated_ns"] else [QUINTIC] * options["ns_steps"]
    if options["low_rank_ortho"] and options["ortho_rank"] < min(rows, cols):
        basis = range_basis(x, options["ortho_rank"], keys())
        return product(basis, newton_schulz(product(basis.mT, x), steps, options["ns_dtype"]))
    return newton_schulz(x, steps, options["ns_dtype"])


def newton_schulz(x: Tensor, steps: list[tuple[float, float, float]], ns_dtype: str = "float32") -> Tensor:
    """Applies X ← aX + (bXXᵀ + c(XXᵀ)²)X for each (a, b, c), after dividing X by its Frobenius norm.

    Args:
        x: `[b, n, m]`.
        ns_dtype: of the iterations, on every device. "float32" is the dtype of x, so float64 for float64. "bfloat16"
            is faster on a GPU and loses the small singular values: of 128 that fall over four decades the lower half
            comes out wrong by 12 %, over six decades by more than its size, see docs/optimizers.md.
    """
    y = x.bfloat16() if ns_dtype == "bfloat16" else x
    tall = x.shape[1] > x.shape[2]
    y = y.mT if tall else y
    y = y / unit_norm(y, WHOLE).clamp(min=EPS)
    rows, cols = y.shape[1:]
    # zeros stay zeros
    y = aligned(y)
    for a, b, c in steps:
        gram = _product(y, y.mT)
        inner = _product(gram, gram, gram, b, c) if c else gram * b
        y = _product(inner, y, y, a)
    y = y[:, :rows, :cols]
    return (y.mT if tall else y).to(x.dtype).contiguous()


def _product(x: Tensor, y: Tensor, start: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """β·start + α·x·y, added up in float32 and rounded to the dtype of x.

    On a CPU the library's own products of bfloat16 depend on the size of the stack, on some processors.
    """
    given = x, y, start
    if x.dtype == torch.bfloat16 and not x.is_cuda:
        x, y, start = (None if tensor is None else tensor.float() for tensor in given)
    found = torch.bmm(x, y) if start is None else torch.baddbmm(start, x, y, beta=beta, alpha=alpha)
    return found.to(given[0].dtype)


def cubic_steps(low: float, count: int) -> list[tuple[float, float, float]]:
    """Coefficients of cubic iterations that are optimal on an interval of singular values (arXiv 2506.10935).

    On [l, h], with q = (l² + lh + h²)/3, K = 2q^(3/2), R = lh(l + h): the odd cubic nearest to 1 is
    6/(K + R)·(q·x − x³/3); its error ε = (K − R)/(K + R) makes the next interval [1 − ε, 1 + ε].
    """
    steps, high = [], 1.0
    for _ in range(count):
        q = (low * low + low * high + high * high) / 3
        k, r = 2 * q**1.5, low * high * (low + high)
        a = 6 / (k + r)
        steps.append((a * q, -a / 3, 0.0))
        error = (k - r) / (k + r)
        low, high = 1 - error, 1 + error
    return steps


def range_basis(x: Tensor, rank: int, keys: Tensor) -> Tensor:
    """Orthonormal `[b, rows, rank]` that spans what a random sign sketch sees of x (arXiv 0909.4061)."""
    b, rows, cols = x.shape
    signs = torch.where(uniform_bits(keys, cols * rank) < 0, -1.0, 1.0).to(x.dtype).view(b, cols, rank)
    sketch = product(x, signs)
    return torch.linalg.qr(sketch if x.is_cuda else aligned(sketch)).Q[:, :rows, :rank].contiguous()
