"""A frozen layer plus a low-rank term in one step of autograd, without elementwise work on full-size tensors.

Axes: `b` batch, `n` rows (all leading axes of an input), `o` out, `i` in, `r` rank, `h w` image.
The scale alpha/rank rides along inside matrix products, so that it costs nothing. Each operation has two forms of the
same arithmetic. Composed of torch's own operations it has the least overhead, which is what small inputs (and
torch.compile) need; as one `Function` it spares large inputs a pass over memory or two.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

# stride, padding and dilation of a convolution, each (vertical, horizontal)
Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
POINTWISE: Geometry = ((1, 1), (0, 0), (1, 1))
# Elements of the input from which on the Function is the faster form; measured on a CPU.
LARGE_INPUT = 1 << 17


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    factors: Tensor | None = None,
    merge: bool = True,
) -> Tensor:
    """y = z·Wᵀ + bias + scale·(z·downᵀ)·upᵀ with z = x⊙factors; no gradient for `weight` and `bias`.

    Args:
        x: `[..., i]`.
        weight: `[o, i]`, frozen.
        bias: `[o]`, frozen, or None.
        down: `[r, i]`.
        up: `[o, r]`.
        scale: factor of the low-rank term.
        factors: `[i]`, what each input is multiplied by; None for 1.
        merge: may form W + ΔW where that is faster.

    Returns:
        `[..., o]`. All tensors but `factors` must share one dtype.
    """
    if x.numel() >= LARGE_INPUT and not torch.compiler.is_compiling():
        return _LowRankLinear.apply(x, weight, bias, down, up, scale, factors, merge)
    if factors is not None:
        x = (x * factors).to(x.dtype)
    y, hidden = F.linear(x, weight, bias), F.linear(x, down)
    if y.dim() == 2:
        return torch.addmm(y, hidden, up.t(), alpha=scale)
    rows = torch.addmm(y.view(-1, y.shape[-1]), hidden.view(-1, hidden.shape[-1]), up.t(), alpha=scale)
    return rows.view(y.shape)


def low_rank_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    geometry: Geometry,
    factors: Tensor | None = None,
    merge: bool = True,
) -> Tensor:
    """y = conv(z, W) + bias + scale·conv1x1(conv(z, down), up), z = x⊙factors; no gradient for `weight` and `bias`.

    Args:
        x: `[b, i, h, w]`, contiguous or channels-last; the result has the same layout.
        weight: `[o, i, kh, kw]`, frozen.
        bias: `[o]`, frozen, or None.
        down: `[r, i, kh, kw]`.
        up: `[o, r, 1, 1]`.
        scale: factor of the low-rank term.
        geometry: of `weight`, and of `down` likewise.
        factors: `[i]`, what each input channel is multiplied by; None for 1.
        merge: may form W + ΔW where that is faster.

    Returns:
        `[b, o, h', w']`. All tensors but `factors` must share one dtype.
    """
    if x.numel() >= LARGE_INPUT and not torch.compiler.is_compiling():
        return _LowRankConv2d.apply(x, weight, bias, down, up, scale, geometry, factors, merge)
    if factors is not None:
        x = (x * factors.view(-1, 1, 1)).to(x.dtype)
    y, hidden = F.conv2d(x, weight, bias, *geometry), F.conv2d(x, down, None, *geometry)
    if not y.is_contiguous():
        return torch.add(y, F.conv2d(hidden, up), alpha=scale)
    matrix = up.flatten(1).expand(len(x), -1, -1)
    return torch.baddbmm(y.flatten(2), matrix, hidden.flatten(2), alpha=scale).view(y.shape)


class _LowRankLinear(Function):
    # the arguments are those of `low_rank_linear`
    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scale, factors, merge):
        rows = x.reshape(-1, x.shape[-1])
        # x⊙factors is not kept: where the backward pass needs it, the factors can be applied to a smaller result
        scaled = rows if factors is None else _times(rows, factors)
        hidden = scaled @ down.t()
        out = F.linear(scaled, weight, bias).addmm_(hidden, up.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, hidden, factors)
        ctx.scale, ctx.shape, ctx.merge = scale, x.shape, merge and factors is None
        # no view of its own making may leave a Function, or whoever changes the output in place gets an error
        return torch.ops.aten._unsafe_view(out, (*x.shape[:-1], weight.shape[0]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, hidden, factors = ctx.saved_tensors
        need_x, _, _, need_down, need_up, _, need_factors, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_down = grad_up = grad_factors = None
        if need_up:
            grad_up = _scaled_mm(grad.t(), hidden, ctx.scale)
        if need_down or need_x or need_factors:
            grad_hidden = grad @ up
        if need_down:
            grad_down = _scaled_mm(grad_hidden.t(), rows, ctx.scale)
            if factors is not None:
                grad_down.mul_(factors)
        if need_x and ctx.merge and _merging_pays(len(rows), weight):
            grad_x = grad @ torch.addmm(weight, up, down, alpha=ctx.scale)
        elif need_x or need_factors:
            grad_x = (grad @ weight).addmm_(grad_hidden, down, alpha=ctx.scale)
        if need_factors:
            grad_factors = (grad_x * rows).sum(0, dtype=factors.dtype)
        if need_x:
            grad_x = (grad_x if factors is None else grad_x.mul_(factors)).view(ctx.shape)
        return grad_x if need_x else None, None, None, grad_down, grad_up, None, grad_factors, None


class _LowRankConv2d(Function):
    # the arguments are those of `low_rank_conv2d`
    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scale, geometry, factors, merge):
        scaled = x if factors is None else _times(x, factors.view(-1, 1, 1))
        out = F.conv2d(scaled, weight, bias, *geometry)
        hidden = F.conv2d(scaled, down, None, *geometry)
        ctx.save_for_backward(x, weight, down, up, hidden, factors)
        ctx.scale, ctx.geometry, ctx.merge = scale, geometry, merge and factors is None
        if out.is_contiguous():
            matrix = up.flatten(1).expand(len(x), -1, -1)
            out.view(*out.shape[:2], -1).baddbmm_(matrix, hidden.flatten(2), alpha=scale)
        else:
            pixels = out.permute(0, 2, 3, 1)
            if pixels.is_contiguous():
                pixels.view(-1, pixels.shape[-1]).addmm_(_pixel_rows(hidden), up.flatten(1).t(), alpha=scale)
            else:
                out.add_(F.conv2d(hidden, up), alpha=scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden, factors = ctx.saved_tensors
        need_x, _, _, need_down, need_up, _, _, need_factors, _ = ctx.needs_input_grad
        grad_x = grad_down = grad_up = grad_factors = None
        matrix = up.flatten(1)
        if grad.is_contiguous():
            planes = grad.flatten(2)
            if need_up:
                products = torch.bmm(planes, hidden.flatten(2).transpose(1, 2))
                grad_up = products.sum(0).mul_(ctx.scale).view_as(up)
            spread = matrix.t().expand(len(x), -1, -1)
            unused = planes.new_empty((1, 1, 1))  # beta=0 ignores it
            grad_hidden = torch.baddbmm(unused, spread, planes, beta=0, alpha=ctx.scale).view_as(hidden)
        else:
            rows = _pixel_rows(grad)
            if need_up:
                grad_up = _scaled_mm(rows.t(), _pixel_rows(hidden), ctx.scale).view_as(up)
            b, r, h, w = hidden.shape
            grad_hidden = _scaled_mm(rows, matrix, ctx.scale).view(b, h, w, r).permute(0, 3, 1, 2)
        need_scaled = need_x or need_factors
        merge = need_x and ctx.merge and _merging_pays(grad.numel() // grad.shape[1], weight)
        low_x = need_scaled and not merge
        if need_scaled:
            kernel = weight
            if merge:
                merged = torch.addmm(weight.flatten(1), matrix, down.flatten(1), alpha=ctx.scale)
                kernel = merged.view(weight.shape)
            grad_x, _ = conv2d_backward(grad, x, kernel, ctx.geometry, True, False)
        if low_x or need_down:
            grad_x_low, grad_down = conv2d_backward(grad_hidden, x, down, ctx.geometry, low_x, need_down)
        if low_x:
            grad_x = grad_x.add_(grad_x_low)
        if factors is not None:
            grad_down = grad_down.mul_(factors.view(-1, 1, 1)) if need_down else None
            if need_factors:
                grad_factors = (grad_x * x).sum((0, 2, 3), dtype=factors.dtype)
            grad_x = grad_x.mul_(factors.view(-1, 1, 1)) if need_x else None
        return grad_x, None, None, grad_down, grad_up, None, None, grad_factors, None


def _merging_pays(rows: int, weight: Tensor) -> bool:
    """Whether the gradient of the input is cheaper through W + ΔW than through W and the adapter one by one.

    The sum is as large as the weight, the adapter's own product as large as the input. In half precision a small ΔW
    would drown in the sum's rounding, so there it never pays.
    """
    return weight.dtype in (torch.float32, torch.float64) and rows >= 2 * weight.shape[0]


def _times(x: Tensor, factors: Tensor) -> Tensor:
    """x⊙factors in the dtype and layout of `x`, rounded once."""
    return torch.mul(x, factors, out=torch.empty_like(x))


def _scaled_mm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale·left·right in one kernel."""
    unused = left.new_empty((1, 1))  # beta=0 ignores it
    return torch.addmm(unused, left, right, beta=0, alpha=scale)


def _pixel_rows(image: Tensor) -> Tensor:
    """`[b, c, h, w]` -> `[b·h·w, c]`; a view if the layout is channels-last."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need_x: bool, need_weight: bool, groups: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution with respect to its input and its weight."""
    pointwise = geometry == POINTWISE and weight.shape[2:] == (1, 1) and groups == 1
    if pointwise and grad.is_contiguous() and x.is_contiguous():
        # matrix products: the convolution kernels are slow at this
        planes, matrix, grad_x, grad_weight = grad.flatten(2), weight.flatten(1), None, None
        if need_x:
            grad_x = torch.bmm(matrix.t().expand(len(x), -1, -1), planes).view_as(x)
        if need_weight:
            grad_weight = torch.bmm(planes, x.flatten(2).transpose(1, 2)).sum(0).view_as(weight)
        return grad_x, grad_weight
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *geometry, False, (0, 0), groups, (need_x, need_weight, False)
    )
    return grad_x, grad_weight
