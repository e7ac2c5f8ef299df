"""How Flux.1 and its relatives see an image: patches of 2 × 2 latents, each a token with a row and a column.

Axes: `b` batch, `c` channels of packed latents, `h w` their sides.
"""

from modules.model.FlowModel import FlowModel

import torch
import torch.nn.functional as F
from torch import Tensor


class PatchedLatents(FlowModel):
    """The VAE's latents are shifted and scaled as its config says; each of their patches is one token."""

    @property
    def image_grid(self) -> int:
        """Pixels of one token; 16 in the published models."""
        return 2 ** len(self.layers_of("vae").config.block_out_channels)

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Each channel holds one pixel of a patch of 2 × 2."""
        own = self.vae.config
        return F.pixel_unshuffle((latents - own.shift_factor) * own.scaling_factor, 2)

    def unpack_latents(self, latents: Tensor) -> Tensor:
        own = self.vae.config
        return F.pixel_shuffle(latents, 2) / own.scaling_factor + own.shift_factor

    @property
    def packing(self) -> str:
        own = self.layers_of("vae").config
        return f"{own.scaling_factor} {own.shift_factor} packed"

    def tokens_and_places(self, noised: Tensor, text_tokens: int) -> dict[str, Tensor]:
        """Arguments of the transformer for an image and the places in it; all tokens of the text are at one place.

        Args:
            noised: `[b, c, h, w]`.
            text_tokens: their number.
        """
        return {
            "hidden_states": noised.flatten(2).transpose(1, 2),
            "img_ids": token_places(*noised.shape[2:], self.device),
            "txt_ids": torch.zeros(text_tokens, 3, device=self.device),
        }


def token_places(height: int, width: int, device: torch.device) -> Tensor:
    """`[l, 3]` (0, row, column) of an image's tokens, row by row, float32."""
    places = torch.zeros(height, width, 3, device=device)
    places[..., 1] = torch.arange(height, device=device)[:, None]
    places[..., 2] = torch.arange(width, device=device)
    return places.flatten(0, 1)
