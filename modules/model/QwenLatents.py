"""How Qwen-Image and its relatives see an image: in patches of 2 × 2 latents of Wan's VAE.

Axes: `c` channels of packed latents, `h w` their sides.
"""

from modules.model.FlowModel import FlowModel
from modules.model.WanLatents import WanLatents

import torch
import torch.nn.functional as F
from torch import Tensor


class QwenLatents(WanLatents):
    """Each patch is one token."""

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Each channel holds one pixel of a patch of 2 × 2."""
        return F.pixel_unshuffle(super().pack_latents(latents), 2)

    def unpack_latents(self, latents: Tensor) -> Tensor:
        return super().unpack_latents(F.pixel_shuffle(latents, 2))

    @property
    def packing(self) -> str:
        return f"{super().packing} packed"

    # tokens are places of packed latents
    def token_count(self, shape: torch.Size) -> int:
        return FlowModel.token_count(self, shape)

    def image_of_tokens(self, latents: Tensor, height: int, width: int) -> Tensor:
        return FlowModel.image_of_tokens(self, latents, height, width)
