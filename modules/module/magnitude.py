"""DoRA's magnitude, trained apart from the weights' directions, and the weights' norms (arXiv 2402.09353).

Axes: `o` out, `i` in (per group of a convolution), `h w` kernel, `r` rank, `d` vectors: one per input (the input axis,
d = i, a vector spans o·h·w) or one per output (the output axis, d = o, a vector spans i·h·w). All is float32.
The sums here never form a matrix of the weight's size: ‖W + ΔW‖² = ‖W‖² + 2⟨W, ΔW⟩ + ‖ΔW‖², where ‖W‖² is constant and
the other two follow from the factors of ΔW.
"""

from collections.abc import Mapping
from typing import Any

from modules.module.dense_weight import weight_shape, weight_slices
from modules.util.UserError import UserError
from scaled_optim.arithmetic import widest

import torch
from torch import Tensor, nn
from torch.autograd import Function

DORA_SCALE, PEFT_MAGNITUDE = "dora_scale", "lora_magnitude_vector"
TINY = torch.finfo(torch.float32).tiny
EPSILON = torch.finfo(torch.float32).eps


def magnitude_shape(shape: torch.Size, output_axis: bool) -> tuple[int, ...]:
    """The shape in which files hold the magnitude, which multiplies a weight of `shape` as it stands."""
    return tuple(size if axis == (0 if output_axis else 1) else 1 for axis, size in enumerate(shape))


def on_output_axis(magnitude: Tensor, shape: torch.Size) -> bool:
    """Whether a magnitude from a file is on the output axis, as ComfyUI decides it: if its first size is o.

    Raises:
        UserError: the shape fits neither axis.
    """
    sizes = list(magnitude.shape)
    if magnitude.numel() == shape[0] and sizes and sizes[0] == shape[0]:
        return True
    if magnitude.numel() == shape[1]:
        return False
    expected = [list(magnitude_shape(shape, axis)) for axis in (False, True)]
    raise UserError(f"{DORA_SCALE} has the shape {sizes}, expected {expected[0]} or {expected[1]}.")


def magnitude_of(parts: Mapping[str, Tensor], shape: torch.Size) -> tuple[Tensor, bool]:
    """The magnitude among an adapter's parts, and whether it is on the output axis; peft's always is.

    Raises:
        UserError: there is none, or it has a shape that can't be.
    """
    if DORA_SCALE in parts:
        return parts[DORA_SCALE], on_output_axis(parts[DORA_SCALE], shape)
    if PEFT_MAGNITUDE in parts:
        return parts[PEFT_MAGNITUDE], True
    raise UserError(f"{DORA_SCALE} is missing. The file is incomplete; save it again.")


@torch.no_grad()
def squared_norms(layer: nn.Module, output_axis: bool) -> Tensor:
    """‖W‖² of each weight vector, `[d]`, float32 (summed in float64 where the device has it)."""
    shape = weight_shape(layer)
    found = []
    for _, rows in weight_slices(layer):
        norms = torch.linalg.vector_norm(rows, dim=1 if output_axis else 0, dtype=widest(rows.device))
        found.append(norms.square())
    if output_axis:
        return torch.cat(found).float()
    return torch.stack(found).sum(0).view(shape[1], -1).sum(1).float()


def low_rank_change(layer: nn.Module, down: Tensor, up: Tensor, scale: float, output_axis: bool) -> Tensor:
    """‖W + s·up·down‖² − ‖W‖² of each weight vector, `[d]`, float32.

    Args:
        layer: holds W.
        down: `[r, i]` or `[r, i, h, w]`, any dtype.
        up: `[o, r]` or `[o, r, 1, 1]`.
        scale: s.
        output_axis: which vectors.
    """
    down, up = down.float().flatten(1), up.float().flatten(1)
    if output_axis:
        factor, gram = up, torch.mm(down, down.t())
        products = torch.cat([torch.mm(rows, down.t()) for _, rows in weight_slices(layer)])
    else:
        factor, gram = down.t(), torch.mm(up.t(), up)
        products = sum(torch.mm(rows.t(), up[place]) for place, rows in weight_slices(layer))
    # `products` is W·downᵀ or Wᵀ·up; a row's scalar product with the factor's row is ⟨W, up·down⟩ of a vector
    both = torch.addmm(products, factor, gram, beta=2 * scale, alpha=scale * scale)
    change = both.mul_(factor).sum(1)
    return change if output_axis else change.view(weight_shape(layer)[1], -1).sum(1)


def kronecker_change(layer: nn.Module, w1: Tensor, w2: Tensor, scale: float, output_axis: bool) -> Tensor:
    """‖W + s·kron(w1, w2)‖² − ‖W‖² of each weight vector, `[d]`, float32.

    Args:
        layer: holds W.
        w1: `[o1, i1]`, any dtype.
        w2: `[o2, i2]` or `[o2, i2, h, w]`; o1·o2 = o and i1·i2 = i.
        scale: s.
        output_axis: which vectors.
    """
    w1, w2 = w1.float(), w2.float().flatten(1)
    cross = []
    for place, rows in weight_slices(layer, small=True):
        index = torch.arange(place.start, place.stop, device=rows.device)
        first, second = w1[index // len(w2)], w2[index % len(w2)]  # [k, i1], [k, i2·h·w]: the factors of each row
        blocks = rows.view(len(rows), w1.shape[1], -1)
        if output_axis:
            cross.append((torch.bmm(blocks, second[..., None]).squeeze(2) * first).sum(1))
        else:
            cross.append((blocks * second[:, None]).mul_(first[..., None]).sum(0).flatten())
    axis = 1 if output_axis else 0
    own = torch.outer(w1.square().sum(axis), w2.square().sum(axis)).flatten()
    both = 2 * scale * (torch.cat(cross) if output_axis else torch.stack(cross).sum(0)) + scale * scale * own
    return both if output_axis else both.view(weight_shape(layer)[1], -1).sum(1)


def norms_of(squares: Tensor, epsilon: bool) -> Tensor:
    """The norms by which weight vectors are divided; never zero."""
    norms = squares.clamp_min(0).sqrt_()
    # without epsilon a vector of norm 0 still must not make a NaN; what it is divided by doesn't matter
    return norms + EPSILON if epsilon else norms.clamp_min(TINY)


def scaled_outputs(y: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
    """(y − bias)⊙factors + bias, exactly y where the factors are 1.

    Args:
        y: `[..., o]`, or `[..., o, h, w]` with factors and bias as `[o, 1, 1]`.
        factors: float32.
        bias: frozen, or None.

    Returns:
        In the dtype of `y`.
    """
    return (_scale_outputs if torch.compiler.is_compiling() else _ScaledOutputs.apply)(y, factors, bias)


def _scale_outputs(y: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return (y * factors).to(y.dtype)
    shift = bias.detach() * (1 - factors)
    if y.dtype == factors.dtype == shift.dtype:
        return torch.addcmul(shift, y, factors)
    return (y * factors + shift).to(y.dtype)


class _ScaledOutputs(Function):
    """`_scale_outputs` with one pass over memory less in its backward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, factors, bias)
        return _scale_outputs(y, factors, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, factors, bias = ctx.saved_tensors
        need_y, need_factors, _ = ctx.needs_input_grad
        grad_y = grad_factors = None
        axis = y.dim() - factors.dim()
        others = [dim for dim in range(y.dim()) if dim != axis]
        if need_factors:
            grad_y = grad * y
            grad_factors = grad_y.sum(others, dtype=factors.dtype).view_as(factors)
            if bias is not None:
                grad_factors -= grad.sum(others, dtype=factors.dtype).view_as(factors) * bias
        if need_y:
            grad_y = torch.mul(grad, factors, out=torch.empty_like(grad) if grad_y is None else grad_y)
        return grad_y if need_y else None, grad_factors, None


def full_precision(device: torch.device) -> torch.autocast:
    """A context that keeps autocast out of arithmetic that is meant to be float32."""
    return torch.autocast(device.type, enabled=False)
