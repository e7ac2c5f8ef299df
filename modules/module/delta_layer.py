"""A frozen layer with a weight change that is made from its factors when needed, and never kept.

For adapters whose ΔW is as large as W: keeping it (and what it was made from) until the backward pass would cost a copy
of the base model for each. Here the forward pass makes it, uses it and drops it; the backward pass makes it again.

Axes: `b` batch, `n` rows, `o` out, `i` in, `h w` image.
"""

from collections.abc import Callable
from typing import Any

from modules.module.AdapterModule import AdaptedLayer
from modules.module.LoRAModule import padded
from modules.module.low_rank import Geometry, conv2d_backward
from modules.module.magnitude import full_precision

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

# Makes ΔW, in the weight's shape and float32, of an adapter's trained tensors
Build = Callable[..., Tensor]


def delta_layer(
    x: Tensor,
    layer: AdaptedLayer,
    build: Build,
    factors: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The layer's product of `x` with W + ΔW, or with ΔW alone; no gradient for `weight` and `bias`.

    Args:
        x: `[..., i]`, or `[b, i, h, w]` for convolutions.
        layer: gives kind, geometry and groups of the product.
        build: ΔW of `factors`; must depend on nothing else that is trained.
        factors: trained tensors, of any dtype.
        weight: W in the dtype of `x`, or None for ΔW alone.
        bias: in the dtype of `x`, or None.

    Returns:
        `[..., o]` or `[b, o, h', w']`, in the dtype of `x`.
    """
    geometry: Geometry | None = None
    groups = 1
    if isinstance(layer, nn.Conv2d):
        x, geometry = padded(x, layer)
        groups = layer.groups
    if torch.compiler.is_compiling():
        with full_precision(x.device):
            return _product(x, _kernel(build(*factors), weight, x.dtype), bias, geometry, groups)
    return _DeltaLayer.apply(x, weight, bias, build, geometry, groups, *factors)


def _kernel(delta: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    delta = delta.to(dtype)
    return delta if weight is None else weight + delta


def _product(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry | None, groups: int) -> Tensor:
    if geometry is None:
        return F.linear(x, kernel, bias)
    return F.conv2d(x, kernel, bias, *geometry, groups)


class _DeltaLayer(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        build: Build,
        geometry: Geometry | None,
        groups: int,
        *factors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *factors)
        ctx.build, ctx.geometry, ctx.groups = build, geometry, groups
        with full_precision(x.device):
            return _product(x, _kernel(build(*factors), weight, x.dtype), bias, geometry, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        need_x, need_factors = ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        leaves = [factor.detach().requires_grad_(need) for factor, need in zip(factors, need_factors, strict=True)]
        with full_precision(x.device):
            with torch.enable_grad():
                delta = ctx.build(*leaves)
            kernel = _kernel(delta.detach(), weight, x.dtype) if need_x else delta.detach().to(x.dtype)
            if ctx.geometry is None:
                grad_x = grad @ kernel if need_x else None
                grad_kernel = grad.flatten(0, -2).t() @ x.flatten(0, -2) if any(need_factors) else None
            else:
                grad_x, grad_kernel = conv2d_backward(
                    grad, x, kernel, ctx.geometry, need_x, any(need_factors), ctx.groups
                )
            del kernel
            found: list[Tensor | None] = [None] * len(leaves)
            if grad_kernel is not None:
                wanted = [place for place, need in enumerate(need_factors) if need]
                grads = torch.autograd.grad(delta, [leaves[place] for place in wanted], grad_kernel.to(delta.dtype))
                for place, own in zip(wanted, grads, strict=True):
                    found[place] = own
        return grad_x, None, None, None, None, None, *found
