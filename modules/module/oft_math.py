"""The rotations of OFT (arXiv 2306.07280): from trained numbers to orthogonal blocks, for many layers at once.

Axes: `k` blocks, `b` block size, `n` = b(b−1)/2 numbers of a block. A block's numbers are the upper triangle of a
skew-symmetric matrix Q, row by row. All arithmetic is float32 (float64 for float64 numbers), whatever autocast says.
"""

import math
from collections.abc import Sequence
from typing import Any

from modules.util.enum.OFTScaleMode import OFTScaleMode

import torch
from torch import Tensor
from torch.autograd import Function

# Elements of the blocks that go through the inversion together; a processor's cache holds its handful of temporaries.
CHUNK = 1 << 15
# Norms of Q² for which a product of few factors is the faster way to the inverse; see `_inverse_of_rest`.
SERIES_LIMIT = 0.5


def triangle_size(block_size: int) -> int:
    """n, the numbers that a rotation of this many dimensions has."""
    return block_size * (block_size - 1) // 2


def block_size_of(numbers: int) -> int | None:
    """The block size that has this many numbers, None if there is none."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    return size if numbers > 0 and triangle_size(size) == numbers else None


def nearest_block_size(asked: int, dimension: int) -> int:
    """The divisor of `dimension` nearest to `asked`, the smaller of two that are equally near.

    Never 1, which would rotate nothing: a prime dimension becomes one block. `dimension` must be at least 2.
    """
    divisors = [size for size in range(2, dimension + 1) if dimension % size == 0]
    return min(divisors, key=lambda size: (abs(size - asked), size))


def scale_of(block_size: int, mode: OFTScaleMode | None) -> float:
    """What scaled OFT multiplies the trained numbers by: ELEMENTS 1/√n, ROW 1/(2√(b−1)), None 1."""
    if mode == OFTScaleMode.ELEMENTS:
        return triangle_size(block_size) ** -0.5
    return 0.5 * (block_size - 1) ** -0.5 if mode == OFTScaleMode.ROW else 1.0


def skew(numbers: Tensor, block_size: int) -> Tensor:
    """`[k, n]` -> Q `[k, b, b]`: the numbers in the upper triangle, their negatives in the lower one."""
    rows, columns = torch.triu_indices(block_size, block_size, 1, device=numbers.device)
    place = torch.zeros(block_size, block_size, dtype=torch.long, device=numbers.device)
    place[rows, columns] = torch.arange(len(rows), device=numbers.device)
    sign = torch.ones(block_size, block_size, dtype=numbers.dtype, device=numbers.device)
    matrices = numbers.index_select(1, (place + place.t()).flatten()).view(-1, block_size, block_size)
    return matrices.mul_(sign.triu(1) - sign.tril(-1))


def upper(matrices: Tensor) -> Tensor:
    """`[k, b, b]` -> `[k, n]`, what stands above the diagonal, row by row."""
    size = matrices.shape[-1]
    rows, columns = torch.triu_indices(size, size, 1, device=matrices.device)
    return matrices.flatten(1).index_select(1, rows * size + columns)


def rotations(
    weights: Sequence[Tensor],
    scales: Sequence[float],
    block_size: int,
    neumann: bool = False,
    dropout: float = 0.0,
) -> tuple[Tensor, ...]:
    """The rotations of several layers in one go.

    Each block of a layer is R = (I + Q)(I − Q)⁻¹ with Q the skew matrix of scale·weight, so R is orthogonal; R(−Q) =
    Rᵀ. `neumann` takes I + 2Q + 2Q² + 2Q³ + Q⁴ instead, as OneTrainer and (for five terms) peft do: off by about
    ‖Q‖⁴, and as little orthogonal. The graph may be walked backward any number of times.

    Args:
        weights: one `[k, n]` per layer, of one dtype and device.
        scales: one number per layer.
        block_size: b, at least 2.
        neumann: see above.
        dropout: probability with which each block becomes the identity, drawn from torch's global generator.

    Returns:
        One `[k, b, b]` per layer.
    """
    kept = None
    device = weights[0].device
    if dropout:
        kept = torch.rand(sum(len(weight) for weight in weights), 1, 1, device=device) >= dropout
    with torch.autocast(device.type, enabled=False):
        return _Rotations.apply(block_size, neumann, kept, scales, *weights)


class _Rotations(Function):
    @staticmethod
    def forward(
        ctx: Any, block_size: int, neumann: bool, kept: Tensor | None, scales: Sequence[float], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(weights[0].dtype, torch.float32)
        numbers = torch.cat([weight.to(wide) * scale for weight, scale in zip(weights, scales, strict=True)])
        q = skew(numbers, block_size)
        rotation = neumann_series(q) if neumann else cayley(q)
        if kept is not None:
            rotation = torch.where(kept, rotation, torch.eye(block_size, dtype=wide, device=q.device))
        ctx.set_materialize_grads(False)
        # not through save_for_backward, which frees what it holds after one backward: checkpointed layers of a model
        # each come back here, and so do layers that are called twice
        ctx.saved, ctx.neumann, ctx.kept = q if neumann else rotation, neumann, kept
        ctx.scales, ctx.counts, ctx.dtype = scales, [len(weight) for weight in weights], weights[0].dtype
        return tuple(torch.unsafe_split_with_sizes(rotation, ctx.counts))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[4:]
        chosen = [i for i, grad in enumerate(grads) if grad is not None and needed[i]]
        found: list[Tensor | None] = [None] * len(grads)
        if chosen:
            every = len(chosen) == len(grads)
            with torch.autocast(ctx.saved.device.type, enabled=False):
                saved = ctx.saved if every else _picked(ctx.saved, ctx.counts, chosen)
                grad = torch.cat([grads[i] for i in chosen]).to(saved.dtype)
                if ctx.kept is not None:
                    grad = grad * (ctx.kept if every else _picked(ctx.kept, ctx.counts, chosen))
                grad = neumann_backward(saved, grad) if ctx.neumann else cayley_backward(saved, grad)
                numbers = upper(grad).sub_(upper(grad.transpose(1, 2)))
            for i, own in zip(chosen, numbers.split([ctx.counts[i] for i in chosen]), strict=True):
                found[i] = (own * ctx.scales[i]).to(ctx.dtype)
        return None, None, None, None, *found


def _picked(stack: Tensor, counts: Sequence[int], chosen: Sequence[int]) -> Tensor:
    pieces = stack.split(counts)
    return torch.cat([pieces[i] for i in chosen])


def cayley(q: Tensor) -> Tensor:
    """R = (I + Q)(I − Q)⁻¹ of skew matrices `[k, b, b]`, exact to rounding; Q = 0 gives I to the bit."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    if q.device.type != "cpu":
        # R = 2(I − Q)⁻¹ − I; a skew Q makes I − Q regular, so nothing is to be checked (and no device waited for)
        return torch.linalg.inv_ex(identity - q).inverse.mul_(2).sub_(identity)
    rotation = torch.empty_like(q)
    for piece, out in zip(*(t.split(max(1, CHUNK // q[0].numel())) for t in (q, rotation)), strict=True):
        torch.mul(_inverse_of_rest(piece, identity), 2, out=out).sub_(identity)
    return rotation


def _inverse_of_rest(q: Tensor, identity: Tensor) -> Tensor:
    """(I − Q)⁻¹ on a CPU.

    LAPACK takes small matrices one by one, which is slow. For the small Q of training, the geometric series as a
    product, (I + Q)(I + Q²)(I + Q⁴)…, is exact to rounding after a few factors that are all matrix products: what is
    left out is as small as the next power.
    """
    if torch.compiler.is_compiling():
        return torch.linalg.inv_ex(identity - q).inverse
    rest = 2.0**-26 if q.dtype == torch.float32 else 2.0**-55
    inverse, power, reached = identity + q, q, _norm_bound(q)
    while reached * reached > rest:
        power = torch.bmm(power, power)
        reached = min(reached * reached, _norm_bound(power))
        if reached > SERIES_LIMIT:
            break
        inverse = torch.baddbmm(inverse, inverse, power)
    if reached <= SERIES_LIMIT:
        return inverse
    return torch.linalg.inv_ex(identity - q).inverse  # large Q, and what is not a number


def _norm_bound(power: Tensor) -> float:
    """At least ‖P‖₂ of any of the blocks; singular values of a skew matrix, and of its powers, come in pairs."""
    return torch.linalg.vector_norm(power, dim=(1, 2)).max().item() * 0.5**0.5


def cayley_backward(rotation: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a general Q from that of R: dR = 2(I − Q)⁻¹ dQ (I − Q)⁻¹, and (I − Q)⁻¹ = (R + I)/2."""
    identity = torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device)
    pieces = []
    # chunks for the CPU's cache; a GPU takes all blocks at once
    step = max(1, CHUNK // rotation[0].numel()) if rotation.device.type == "cpu" else len(rotation)
    for own, own_grad in zip(rotation.split(step), grad.split(step), strict=True):
        left = (own + identity).transpose(1, 2)
        pieces.append(torch.bmm(torch.bmm(left, own_grad), left).mul_(0.5))
    return torch.cat(pieces)


def neumann_series(q: Tensor) -> Tensor:
    """I + 2Q + 2Q² + 2Q³ + Q⁴ = (I + 2Q) + Q²·(2I + 2Q + Q²); Q = 0 gives I to the bit."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    square = torch.bmm(q, q)
    return torch.baddbmm(identity + 2 * q, square, square + 2 * q + 2 * identity)


def neumann_backward(q: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a general Q from that of the series; Qᵀ = −Q spares the transposes."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    square = torch.bmm(q, q)
    inner = torch.bmm(square, grad)
    of_square = torch.baddbmm(inner, grad, square - 2 * q + 2 * identity)
    of_q = torch.baddbmm(2 * (grad + inner), q, of_square, alpha=-1)
    return torch.baddbmm(of_q, of_square, q, alpha=-1)
