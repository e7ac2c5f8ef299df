"""Flux.1 Fill, which fills what a mask covers."""

from collections.abc import Mapping
from typing import Any

from modules.model.families import FLUX_FILL
from modules.model.FluxModel import FluxModel
from modules.util.enum.ConditioningSource import ConditioningSource

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxFillPipeline


class _FillPipeline(FluxFillPipeline):
    """Takes what the mask leaves of an image as latents, too. diffusers' own refuses them beside an image, and fails
    without one; it would encode pixels in the transformer's number format, from a draw of the VAE's posterior."""

    def check_inputs(self, *given: Any, masked_image_latents: Tensor | None = None, **named: Any) -> None:
        super().check_inputs(*given, **named)


class FluxFillModel(FluxModel):
    """Each token holds a patch of the noised image, the same patch of the image without what the mask covers, and each
    pixel of the mask there."""

    title = "Flux.1 Fill"
    model_types = FLUX_FILL.model_types
    sample_defaults = FLUX_FILL.sample_defaults
    conditioning = ConditioningSource.MASK
    like_it = "Flux.1 Fill dev"

    @property
    def input_channels(self) -> int:
        return 2 * super().input_channels + self.image_grid**2

    @torch.no_grad()
    def encode_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """`conditioning_latents` `[b, c, h, w]`, and `conditioning_mask` with a channel for each pixel of a token."""
        assert mask is not None
        latents = self.encode_images(pixels)
        # pixels of a latent, and latents of a token. Half as large as float32, and exact where masks are 0 or 1
        cover = F.pixel_unshuffle(F.pixel_unshuffle(mask.to(latents.device), self.image_grid // 2), 2)
        return {"conditioning_latents": latents, "conditioning_mask": cover.half()}

    def image_tokens(self, noised: Tensor, conditions: Mapping[str, Tensor], text_tokens: int) -> dict[str, Tensor]:
        shown = [conditions[name].to(noised.dtype) for name in ("conditioning_latents", "conditioning_mask")]
        return super().image_tokens(torch.cat([noised, *shown], 1), conditions, text_tokens)

    def pipeline_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Any]:
        encoded = self.encode_conditioning(pixels, mask)
        shown = torch.cat(list(encoded.values()), 1).flatten(2).transpose(1, 2).to(self.transformer_dtype)
        # of the image itself, which it adds to the noise weighted by 0
        start = F.pixel_shuffle(encoded["conditioning_latents"], 2)
        return {"image": start, "mask_image": mask, "masked_image_latents": shown}

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return _FillPipeline(scheduler, self.vae, None, None, None, None, self.transformer)
