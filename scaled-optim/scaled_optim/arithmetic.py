"""Small operations on stacks that every rule needs. Numbers may be floats, or 0-dim tensors in a compiled step."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Number = float | Tensor
# brings atan2(x, x), of a direction that never changes, to 1
ATAN2_SCALE = 4 / math.pi
# A sum with a single result is split among threads from 32768 elements on, one of a stack never is.
LONGEST_SUM = 1 << 14
# in numbers; matrices that begin at multiples of it begin at multiples of 64 bytes
ALIGNMENT = 16
# kinds of devices that have no float64
WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def wide(x: Tensor) -> Tensor:
    """x in float64; where its device has none, in float32."""
    return x.to(widest(x.device))


def decomposable(x: Tensor) -> Tensor:
    """x in float64, to be decomposed; on the CPU where its device has none, as such devices decompose little."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def zero_length(dtype: torch.dtype) -> float:
    """What counts as a length of zero where something is divided by it: the square still has all its digits.

    1e-16 in float32.
    """
    return 1000 * math.sqrt(torch.finfo(dtype).tiny)


def add_scaled_(x: Tensor, y: Tensor, factor: Number) -> Tensor:
    """x += factor·y in place, in one pass."""
    if isinstance(factor, Tensor):
        return x.addcmul_(y, factor)
    return x.add_(y, alpha=factor)


def unit_sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum over the dimensions of a unit, kept as size 1.

    Columns first, then rows, so that each parameter is summed in the same order whatever the size of its stack.
    """
    for dim in sorted(dims, reverse=True):
        x = ordered_sum(x, dim)
    return x


def ordered_sum(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Sum over one dimension, kept as size 1, in an order that depends on its length only, not on stack or threads."""
    full = x.shape[dim] // LONGEST_SUM * LONGEST_SUM
    if full <= LONGEST_SUM:
        return x.sum(dim, keepdim=True, dtype=dtype)
    sums = x.narrow(dim, 0, full).unflatten(dim, (-1, LONGEST_SUM)).sum(dim + 1, dtype=dtype)
    rest = x.narrow(dim, full, x.shape[dim] - full).sum(dim, keepdim=True, dtype=dtype)
    return sums.sum(dim, keepdim=True).add_(rest)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x·y `[b, n, m]` of stacks `[b, n, k]` and `[b, k, m]`, the same to the bit whatever stack a matrix is in.

    On a CPU the library's order of summation depends on where a matrix begins in memory, relative to 64 bytes. Where
    that would differ within a stack, sides are filled up with zeros. On a GPU its choice of kernel may depend on the
    stack's size, so there the results agree to rounding only.
    """
    if x.is_cuda:
        return torch.bmm(x, y)
    (rows, inner), cols = x.shape[1:], y.shape[2]
    if rows * inner % ALIGNMENT or rows * cols % ALIGNMENT:
        x = F.pad(x, (0, 0, 0, -rows % ALIGNMENT))
    if inner * cols % ALIGNMENT:
        y = F.pad(y, (0, -cols % ALIGNMENT))
    found = torch.bmm(x, y)
    return found if found.shape[1:] == (rows, cols) else found[:, :rows, :cols].contiguous()


def transposed_product(x: Tensor, y: Tensor, wide: bool) -> Tensor:
    """`product` xᵀ·y of tall stacks, or x·yᵀ of wide ones."""
    return product(x, y.mT) if wide else product(x.mT, y)


def sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """a·b + c·d of stacks, as `product`."""
    return plus_product_(product(a, b), c, d)


def plus_product_(x: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """x += c·d of stacks in place, as `product`."""
    (rows, inner), cols = c.shape[1:], d.shape[2]
    if x.is_cuda or not (rows * inner % ALIGNMENT or inner * cols % ALIGNMENT or rows * cols % ALIGNMENT):
        return x.baddbmm_(c, d)
    return x.add_(product(c, d))


def aligned(x: Tensor) -> Tensor:
    """`[b, n, m]` filled up with zeros until both sides are multiples of 16; x itself if they are."""
    below, right = -x.shape[1] % ALIGNMENT, -x.shape[2] % ALIGNMENT
    return F.pad(x, (0, right, 0, below)) if below or right else x


def root(x: Tensor, power: int) -> Tensor:
    """x^(1/power) for a power of two, by square roots, which are rounded alike in every place of a stack."""
    for _ in range(power.bit_length() - 1):
        x = x.sqrt()
    return x


def arctangent(y: Tensor, x: Tensor) -> Tensor:
    """atan2(y, x) for x ≥ 0, in [−π/2, π/2]; a fresh tensor. 0 where both are 0, NaN spreads.

    From exactly rounded operations only. torch's own computes the last elements of a tensor, those that fill no vector
    register, by another formula, so what it gives for an element depends on the stack that it is in. On a GPU it does
    not, and is one pass.
    """
    if y.is_cuda:
        return torch.atan2(y, x)
    size = y.abs()
    large = torch.maximum(size, x)
    # both infinite: one; both zero: zero
    ratio = torch.minimum(size, x).div_(large.clamp(torch.finfo(x.dtype).tiny, torch.finfo(x.dtype).max))
    ratio.clamp_(max=1)
    square = ratio * ratio
    first, *rest = _arctangent_series(x.dtype)
    angle = square * first
    for coefficient in rest[:-1]:
        angle.add_(coefficient).mul_(square)
    angle.add_(rest[-1]).mul_(ratio)
    # beyond 45° it is π/2 − angle; `torch.where` would take ten times as long as this arithmetic, which is as exact
    return size.gt_(x).mul_(math.pi / 2).sub_(angle).abs_().copysign_(y)


@lru_cache(maxsize=2)
def _arctangent_series(dtype: torch.dtype) -> list[float]:
    """Coefficients of atan(t)/t in t² on [−1, 1], the highest first.

    atan(t) = 2·Σ (−1)^k·q^(2k+1)/(2k+1)·T_{2k+1}(t) with q = √2 − 1 and Chebyshev's T; what is left out is below half a
    unit in the last place.
    """
    count = 22 if dtype == torch.float64 else 10
    q = math.sqrt(2) - 1
    # odd powers of T_1, T_3, …: T_{n+2} = (4t² − 2)·T_n − T_{n−2}, T_{−1} = T_1
    before, now, total = [1.0], [1.0], [0.0] * count
    for k in range(count):
        weight = 2 * (-1) ** k * q ** (2 * k + 1) / (2 * k + 1)
        for power, coefficient in enumerate(now):
            total[power] += weight * coefficient
        longer = [0.0] * (len(now) + 1)
        for power, coefficient in enumerate(now):
            longer[power] -= 2 * coefficient
            longer[power + 1] += 4 * coefficient
        for power, coefficient in enumerate(before):
            longer[power] -= coefficient
        before, now = now, longer
    return total[::-1]


def unit_dot(x: Tensor, y: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Inner products over the dimensions of a unit, kept as size 1."""
    return unit_sum(x * y, dims)


def unit_norm(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Euclidean norms over the dimensions of a unit, kept as size 1."""
    if dims == (1, 2):
        return torch.linalg.vector_norm(torch.linalg.vector_norm(x, dim=2, keepdim=True), dim=1, keepdim=True)
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True)


def root_mean_square(x: Tensor) -> Tensor:
    """RMS of each parameter `[b, 1, 1]`."""
    return unit_norm(x, (1, 2)) / math.sqrt(x.shape[1] * x.shape[2])
