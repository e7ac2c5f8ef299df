"""Rotating the channels of activations or of a frozen weight, block by block, and layers made of that.

Axes: `n` rows, `c` channels in `k` blocks of `b`, `i` in, `o` out, `h w` image. A `matrix` is `[k, b, b]`, or
`[1, b, b]` for blocks that share one; it acts on a row of channels from the right: row -> row·blockdiag(matrix).

An orthogonal matrix can be applied to the input or to the weight. Here it is the smaller of the two in full precision,
so no temporary is larger than the input, and always the activations in half precision, where a small rotation would
drown in the weight's rounding. There x + x·(M − I) is computed, for the same reason. Where the weight is rotated, the
gradients need no further pass over the activations either: with t the gradient of the rotated input, grad_x = t·Mᵀ
comes straight from the rotated weight, and grad_M = xᵀ·t = (xᵀ·grad_x)·M.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

# stride, padding, dilation and groups of a convolution; None for a linear layer
Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
# Blocks smaller than this are joined for the CPU's matrix products, which are slow at tiny ones; measured.
LEAST_BLOCK = 16
MOST_JOINED = 48


def rotate(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Rotated channels of `x`, in its dtype; differentiable with respect to both, saving only `x` and `matrix`.

    Args:
        x: `[..., c]` with axis -1, or `[batch, c, h, w]` with axis 1.
        matrix: `[k or 1, b, b]` in float32 (float64), whatever dtype `x` has.
        axis: of the channels.
    """
    return _Rotate.apply(x, matrix, axis)


def rotated_input(
    x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, geometry: Geometry | None, orthogonal: bool
) -> Tensor:
    """layer(x·M) for a frozen weight.

    Args:
        x: `[..., i]`, or `[batch, i, h, w]` with a geometry; of the weight's dtype.
        weight: `[o, i]` or `[o, i/groups, kh, kw]`.
        bias: `[o]` or None.
        matrix: on the channels `i`.
        geometry: of the convolution, None for a linear layer.
        orthogonal: whether M·Mᵀ = I holds to rounding.
    """
    if geometry is None and not _weight_is_smaller(x, weight):
        return F.linear(_Rotate.apply(x, matrix, -1), weight, bias)
    return _RotatedInput.apply(x, weight, bias, matrix, geometry, orthogonal)


def rotated_output(x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, geometry: Geometry | None) -> Tensor:
    """(layer(x) − bias)·M + bias for a frozen weight; arguments as for `rotated_input`, the matrix on channels `o`."""
    y = _RotatedOutput.apply(x, weight, bias, matrix, geometry)
    return y if bias is None else y.add_(unturned(bias, matrix, _axis(geometry)))


def unturned(bias: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """bias − bias·M, which undoes that the bias was rotated, too; as it adds to an output with that axis of channels.

    Added afterwards, so that the identity changes nothing to the bit.
    """
    excess = (bias - rotate(bias.view(1, -1), matrix, -1)).view(-1)
    return excess if axis == -1 else excess.view(-1, 1, 1)


def rotated_weight(weight: Tensor, matrix: Tensor, output: bool, groups: int = 1) -> Tensor:
    """The weight of the layer that rotates by itself: W·Mᵀ on the input side, Mᵀ·W on the output side.

    Args:
        weight: `[o, i]` or `[o, i/groups, kh, kw]`.
        matrix: on all `i` or `o` channels; with groups, blocks must not cross them.
        output: the side.
        groups: of the convolution.
    """
    if output:
        return rotate(weight.flatten(1).t(), matrix, -1).t().reshape(weight.shape)
    out, inner, *kernel = weight.shape
    kernel = kernel or [1, 1]
    # to rows of all input channels; each group's outputs see their own
    rows = weight.reshape(groups, out // groups, inner, *kernel).permute(1, 3, 4, 0, 2)
    turned = rotate(rows.reshape(-1, groups * inner), matrix.transpose(1, 2), -1)
    return turned.view(rows.shape).permute(3, 0, 4, 1, 2).reshape(weight.shape)


def rotated_kernels(
    x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, geometry: Geometry, whole: bool = True
) -> Tensor:
    """A convolution without groups whose kernels, flattened to rows of i·kh·kw numbers, are multiplied by M.

    In half precision W and W·(M − I) stand side by side as the kernels of twice as many inputs, as a small rotation
    would drown in the rounding of W·M, or in that of a first sum: twice the products in the forward pass. The input's
    gradient comes from W·M as it is rounded.

    Args:
        x: `[batch, i, h, w]`.
        weight: `[o, i, kh, kw]`, frozen, of any floating-point dtype.
        bias: `[o]` or None.
        matrix: on the i·kh·kw numbers of each row.
        geometry: of the convolution.
        whole: otherwise the result is only what the rotation adds, the convolution with W·(M − I); without a bias.
    """
    return _RotatedKernels.apply(x, weight, bias, matrix, geometry, whole)


def rotated_kernel_weight(weight: Tensor, matrix: Tensor) -> Tensor:
    """The weight `[o, i, kh, kw]` with its flattened rows multiplied by M, in its dtype; differentiable."""
    return rotate(weight.flatten(1), matrix, -1).view(weight.shape)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, axis: int) -> Tensor:
        ctx.save_for_backward(x, matrix)
        ctx.axis = axis
        return _turn(x, matrix, axis)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        grad_x = _turn(grad, matrix.transpose(1, 2), ctx.axis) if ctx.needs_input_grad[0] else None
        grad_matrix = _products(x, grad, matrix, ctx.axis) if ctx.needs_input_grad[1] else None
        return grad_x, grad_matrix, None


class _RotatedInput(Function):
    # the arguments are those of `rotated_input`
    @staticmethod
    def forward(ctx, x, weight, bias, matrix, geometry, orthogonal):
        ctx.save_for_backward(x, weight, matrix)
        ctx.geometry, ctx.orthogonal = geometry, orthogonal
        if _weight_is_smaller(x, weight):
            return _layer(x, _turned_weight(weight, matrix, False, geometry), bias, geometry)
        return _layer(_turn(x, matrix, _axis(geometry)), weight, bias, geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        axis = _axis(ctx.geometry)
        need_x, need_matrix = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        grad_x = grad_matrix = None
        if need_x and ctx.orthogonal and _weight_is_smaller(x, weight):
            grad_x = _input_gradient(grad, x, _turned_weight(weight, matrix, False, ctx.geometry), ctx.geometry)
            if need_matrix:
                grad_matrix = _product(_products(x, grad_x, matrix, axis), matrix)
        else:
            turned = _input_gradient(grad, x, weight, ctx.geometry)
            if need_matrix:
                grad_matrix = _products(x, turned, matrix, axis)
            if need_x:
                grad_x = _turn(turned, matrix.transpose(1, 2), axis)
        return grad_x, None, None, grad_matrix, None, None


class _RotatedOutput(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, geometry: Geometry | None
    ) -> Tensor:
        straight = _layer(x, weight, bias, geometry)
        # of the input a backward pass needs no numbers, only how it lies in memory
        ctx.geometry, ctx.shape, ctx.layout = geometry, x.shape, _layout(x)
        ctx.save_for_backward(straight, weight, matrix)
        return _turn(straight, matrix, _axis(geometry))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        straight, weight, matrix = ctx.saved_tensors
        axis = _axis(ctx.geometry)
        grad_x = grad_matrix = None
        if ctx.needs_input_grad[3]:
            grad_matrix = _products(straight, grad, matrix, axis)
        if ctx.needs_input_grad[0]:
            like = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
            if _weight_is_smaller(straight, weight):
                grad_x = _input_gradient(grad, like, _turned_weight(weight, matrix, True, ctx.geometry), ctx.geometry)
            else:
                turned = _turn(grad, matrix.transpose(1, 2), axis)
                grad_x = _input_gradient(turned, like, weight, ctx.geometry)
        return grad_x, None, None, grad_matrix, None


class _RotatedKernels(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, geometry: Geometry, whole: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, matrix)
        ctx.geometry, ctx.whole = geometry, whole
        if whole and x.dtype not in (torch.float16, torch.bfloat16):
            return F.conv2d(x, _turned_kernels(weight, matrix, True, x.dtype), bias, *geometry)
        change = _turned_kernels(weight, matrix, False, x.dtype)
        if not whole:
            return F.conv2d(x, change, None, *geometry)
        bias = None if bias is None else bias.to(x.dtype)
        return F.conv2d(torch.cat((x, x), 1), torch.cat((weight.to(x.dtype), change), 1), bias, *geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        need_x, need_matrix = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        turned = _turned_kernels(weight, matrix, ctx.whole, x.dtype)
        *shape, groups = ctx.geometry
        grad_x, grad_turned, _ = torch.ops.aten.convolution_backward(
            grad.to(x.dtype), x, turned, None, *shape, False, (0, 0), groups, (need_x, need_matrix, False)
        )
        grad_matrix = None
        if need_matrix:
            wide = torch.promote_types(weight.dtype, torch.float32)
            grad_matrix = _products(weight.flatten(1).to(wide), grad_turned.flatten(1).to(wide), matrix, -1)
        return grad_x, None, None, grad_matrix, None, None


def _axis(geometry: Geometry | None) -> int:
    return -1 if geometry is None else 1


def _layout(image: Tensor) -> torch.memory_format:
    last = image.dim() == 4 and not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _weight_is_smaller(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight is what to rotate; see the head of the file."""
    return weight.numel() <= x.numel() and weight.dtype in (torch.float32, torch.float64)


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """The layer; never a view, which a Function must not return, as nobody could change it in place."""
    if geometry is not None:
        return F.conv2d(x, weight, bias, *geometry)
    rows = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return torch.ops.aten._unsafe_view(rows, (*x.shape[:-1], weight.shape[0]))


def _input_gradient(grad: Tensor, like: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """The gradient of the layer's input, which has the shape and layout of `like`."""
    if geometry is None:
        return torch.mm(grad.reshape(-1, grad.shape[-1]), weight).view(like.shape)
    pointwise = weight.shape[2:] == (1, 1) and geometry == ((1, 1), (0, 0), (1, 1), 1)
    if pointwise and grad.is_contiguous() and like.is_contiguous():
        # a matrix product: the convolution kernels are slow at this
        return torch.bmm(weight.flatten(1).t().expand(len(grad), -1, -1), grad.flatten(2)).view(like.shape)
    *shape, groups = geometry
    found = torch.ops.aten.convolution_backward(
        grad, like, weight, None, *shape, False, (0, 0), groups, (True, False, False)
    )
    return found[0]


def _turned_weight(weight: Tensor, matrix: Tensor, output: bool, geometry: Geometry | None) -> Tensor:
    """The rotated weight, with the very strides of the weight, as a convolution lays out its result by them."""
    turned = rotated_weight(weight, matrix, output, 1 if geometry is None else geometry[3])
    return _laid_out_as(weight, turned)


def _turned_kernels(weight: Tensor, matrix: Tensor, whole: bool, dtype: torch.dtype) -> Tensor:
    """W·M of flattened kernels, or W·(M − I), in `dtype`; the product is at least float32."""
    rows = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    if not whole:
        matrix = matrix - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return _laid_out_as(weight, _multiplied(rows, matrix.to(rows.dtype), -1).view(weight.shape).to(dtype))


def _laid_out_as(weight: Tensor, turned: Tensor) -> Tensor:
    """`turned` with the strides of `weight`."""
    if weight.is_contiguous():
        return turned.contiguous().as_strided(weight.shape, weight.stride())
    return torch.empty_like(weight, dtype=turned.dtype).copy_(turned)


def _turn(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """x·M along the axis, in the dtype of `x`."""
    if x.dtype in (torch.float16, torch.bfloat16):
        rest = matrix - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return _multiplied(x, rest.to(x.dtype), axis).add_(x)
    return _multiplied(x, matrix.to(x.dtype), axis)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products with a given place for the result, which autocast leaves alone."""
    return torch.bmm(left, right, out=left.new_empty(*left.shape[:2], right.shape[2]))


def _multiplied(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """x·M along the axis, laid out as `x` if that is dense; never a view, see `_layer`."""
    matrix = _joined(matrix, x.shape[axis])
    if axis == 1 and _layout(x) == torch.contiguous_format:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        old, new = (t.reshape(-1, matrix.shape[-1], t.shape[2] * t.shape[3]) for t in (x, y))  # [batch·k, b, h·w]
        torch.bmm(_repeated(matrix.transpose(1, 2), len(old)), old, out=new)
        return y
    y = torch.empty_like(x) if x.dim() == 2 or axis == 1 else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    old, new = (_rows(t, axis) for t in (x, y))
    if len(matrix) == 1 and old.is_contiguous():
        torch.mm(old.view(-1, matrix.shape[-1]), matrix[0], out=new.view(-1, matrix.shape[-1]))
    else:
        old, new = (t.view(len(t), -1, matrix.shape[-1]).transpose(0, 1) for t in (old, new))  # [k, n, b], not copied
        if torch.compiler.is_compiling():
            # a graph can't write into strided memory
            new.copy_(torch.bmm(old, _repeated(matrix, len(old))))
        else:
            torch.bmm(old, _repeated(matrix, len(old)), out=new)
    return y


def _rows(x: Tensor, axis: int) -> Tensor:
    """`[n, c]`; not copied if the channels are innermost in memory."""
    return (x if axis == -1 else x.permute(0, 2, 3, 1)).reshape(-1, x.shape[axis])


def _products(x: Tensor, grad: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The gradient of `matrix` in y = x·M, xᵀ·grad on its blocks."""
    size = matrix.shape[-1] * _joint(matrix, x.shape[axis])
    if axis == -1 or _layout(x) == torch.channels_last:
        left, right = _rows(x, axis), _rows(grad, axis)
        if len(matrix) == 1:
            left, right = left.reshape(1, -1, size), right.reshape(1, -1, size)
        else:
            left, right = (t.view(len(t), -1, size).transpose(0, 1) for t in (left, right))
        found = _product(left.transpose(1, 2), right)
    else:
        left, right = (t.reshape(-1, size, t.shape[2] * t.shape[3]) for t in (x, grad))
        found = _product(left, right.transpose(1, 2))
        found = found.view(-1, x.shape[1] // size if len(matrix) > 1 else 1, size, size).sum(0)
    return _parted(found, matrix).to(matrix.dtype)


def _joint(matrix: Tensor, channels: int) -> int:
    """How many blocks are multiplied as one."""
    size = matrix.shape[-1]
    if size >= LEAST_BLOCK or matrix.device.type != "cpu":
        return 1
    count = channels // size
    return next((j for j in range(-(-LEAST_BLOCK // size), MOST_JOINED // size + 1) if count % j == 0), 1)


def _joined(matrix: Tensor, channels: int) -> Tensor:
    """Neighbouring blocks as block-diagonal matrices of a size that is quick to multiply by: `[k/j or 1, j·b, j·b]`."""
    joint, size = _joint(matrix, channels), matrix.shape[-1]
    if joint == 1:
        return matrix
    blocks = matrix.expand(joint, -1, -1) if len(matrix) == 1 else matrix
    wide = matrix.new_zeros(len(blocks) // joint, joint, size, joint, size)
    wide.diagonal(dim1=1, dim2=3).copy_(blocks.reshape(-1, joint, size, size).permute(0, 2, 3, 1))
    return wide.view(-1, joint * size, joint * size)


def _parted(wide: Tensor, like: Tensor) -> Tensor:
    """The blocks that `_joined` put on diagonals; summed where `like` is one matrix for all."""
    size = like.shape[-1]
    joint = wide.shape[-1] // size
    if joint == 1:
        return wide
    blocks = wide.view(-1, joint, size, joint, size).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    return blocks.reshape(-1, size, size) if len(like) > 1 else blocks.sum((0, 1)).unsqueeze(0)


def _repeated(matrix: Tensor, count: int) -> Tensor:
    """The matrices over and over, `[count, b, b]`; a single one is not copied."""
    if len(matrix) in (1, count):
        return matrix.expand(count, -1, -1)
    return matrix.repeat(count // len(matrix), 1, 1)
