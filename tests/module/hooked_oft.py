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
