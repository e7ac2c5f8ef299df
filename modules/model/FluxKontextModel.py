"""Flux.1 Kontext, which edits an image that it is shown."""

from collections.abc import Mapping
from typing import Any

from modules.model.families import FLUX_KONTEXT
from modules.model.FluxModel import FluxModel
from modules.model.PatchedLatents import token_places
from modules.util.enum.ConditioningSource import ConditioningSource

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline


class FluxKontextModel(FluxModel):
    """The transformer reads the shown image's tokens behind those of the noised one; they stand in a second frame."""

    title = "Flux.1 Kontext"
    model_types = FLUX_KONTEXT.model_types
    sample_defaults = FLUX_KONTEXT.sample_defaults
    conditioning = ConditioningSource.FILE
    like_it = "Flux.1 Kontext dev"

    def image_tokens(self, noised: Tensor, conditions: Mapping[str, Tensor], text_tokens: int) -> dict[str, Tensor]:
        arguments = super().image_tokens(noised, conditions, text_tokens)
        shown = conditions["conditioning_latents"].to(noised.dtype)
        places = token_places(*shown.shape[2:], self.device)
        places[:, 0] = 1
        tokens = shown.flatten(2).transpose(1, 2)
        return {
            **arguments,
            "hidden_states": torch.cat([arguments["hidden_states"], tokens], 1),
            "img_ids": torch.cat([arguments["img_ids"], places]),
        }

    def pipeline_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Any]:
        # it packs them again. By default it would choose another size
        latents = F.pixel_shuffle(self.encode_images(pixels), 2)
        return {"image": latents, "max_area": pixels.shape[2] * pixels.shape[3], "_auto_resize": False}

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return FluxKontextPipeline(scheduler, self.vae, None, None, None, None, self.transformer)
