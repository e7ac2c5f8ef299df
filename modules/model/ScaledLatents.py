"""Families whose transformer cuts the VAE's latents into patches itself. Axes: `b` batch, `c` channels, `h w` sides."""

from modules.model.TransformerModel import TransformerModel

import torch
from torch import Tensor


class ScaledLatents(TransformerModel):
    """The VAE's latents are shifted, if at all, and scaled as its config says; a patch of them is one token."""

    @property
    def patch(self) -> int:
        """Sides of a token in latents."""
        return 2

    @property
    def image_grid(self) -> int:
        """Pixels of one token; 16 in the published models."""
        return self.patch * 2 ** (len(self.layers_of("vae").config.block_out_channels) - 1)

    def pack_latents(self, latents: Tensor) -> Tensor:
        own = self.vae.config
        return (latents - (own.shift_factor or 0)) * own.scaling_factor

    def unpack_latents(self, latents: Tensor) -> Tensor:
        own = self.vae.config
        return latents / own.scaling_factor + (own.shift_factor or 0)

    @property
    def packing(self) -> str:
        own = self.layers_of("vae").config
        return f"{own.scaling_factor} {own.shift_factor}"

    def token_count(self, shape: torch.Size) -> int:
        return (shape[2] // self.patch) * (shape[3] // self.patch)

    def image_of_tokens(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents
