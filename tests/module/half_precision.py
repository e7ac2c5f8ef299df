import torch
from torch import Tensor, nn


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
