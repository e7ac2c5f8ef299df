"""What families share whose UNet fills what a mask covers."""

from collections.abc import Mapping
from typing import Any

from modules.model.Draw import Draw
from modules.model.UNetModel import UNetModel
from modules.util.enum.ConditioningSource import ConditioningSource

import torch
from torch import Tensor


class InpaintingUNet(UNetModel):
    """The UNet reads the mask and the image without what it covers beside the noised latents, as further channels."""

    conditioning = ConditioningSource.MASK

    def unet_channels(self, latents: int) -> int:
        return 2 * latents + 1

    def denoise(self, noised: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Tensor:
        shown = self.clean_latents(conditions["conditioning_latents"])
        return super().denoise(torch.cat([noised, conditions["conditioning_mask"], shown], 1), conditions, draw)

    def pipeline_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Any]:
        # all of what the mask covers is drawn anew; by default, SDXL's pipeline would begin from the image
        return {**super().pipeline_conditioning(pixels, mask), "strength": 1.0}
