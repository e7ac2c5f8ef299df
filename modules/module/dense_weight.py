"""The frozen weight of a layer as plain numbers, whatever it is stored as."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def dense_weight(layer: nn.Module) -> Tensor:
    """The layer's weight in float32, dequantized if it is quantized; a copy or the weight itself: don't write to it."""
    weight = layer.weight
    if hasattr(weight, "dequantize") and (weight.is_quantized or type(weight) is not nn.Parameter):
        weight = weight.dequantize()
    return weight.detach().float()
