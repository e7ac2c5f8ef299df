"""What tests of several kinds of adapters do with a layer."""

from typing import Any

from modules.module.OFTModule import OFTModule

import torch
from torch import Tensor, nn


def hooked_oft(
    layer: nn.Module, shape: tuple[int, ...], kind: type[OFTModule], **options: Any
) -> tuple[nn.Module, OFTModule, Tensor]:
    """The layer, a hooked adapter that is not the identity any more, and an input of that shape."""
    adapter = kind(layer, "unet", "some.layer", **options)
    with torch.no_grad():
        adapter.weight.normal_(std=0.1 / adapter.forward_scale)
    adapter.hook()
    return layer, adapter, torch.randn(shape)


def forward_and_backward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient that was sent back from it; the input gets one, the frozen layer none."""
    x.requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert layer.weight.grad is None and (layer.bias is None or layer.bias.grad is None)
    return y, grad


def check_half_precision(layer: nn.Module, trained: nn.Parameter, x: Tensor) -> None:
    """Of a hooked layer: under autocast, and as a bfloat16 layer, it rounds only, and what is trained stays float32."""
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    mixed.float().sum().backward()
    assert mixed.dtype == torch.bfloat16 and trained.grad.dtype == torch.float32
    layer.to(torch.bfloat16)
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        # bfloat16 holds 8 bits
        assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()
