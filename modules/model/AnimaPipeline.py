"""Samples of Anima, of which diffusers has no usual pipeline but blocks that are put together."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from tqdm import tqdm


class AnimaPipeline:
    """Draws latents as diffusers' text-to-image blocks of Anima do, and is called as its usual pipelines are.

    Args:
        scheduler: of the base model.
        velocity: noised latents `[1, c, h, w]`, noise level `[1]` and prompt `[1, n, d]` -> ε − x.
        channels: of latents.
        grid: pixels of one latent.
    """

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
        channels: int,
        grid: int,
        device: torch.device,
    ) -> None:
        self.scheduler, self.velocity, self.channels, self.grid, self.device = (
            scheduler, velocity, channels, grid, device,
        )  # fmt: skip
        self.image_processor = VaeImageProcessor(vae_scale_factor=grid)
        self._bar: dict[str, Any] = {}

    def set_progress_bar_config(self, **options: Any) -> None:
        self._bar = options

    def __call__(
        self,
        *,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        height: int,
        width: int,
        guidance_scale: float,
        num_inference_steps: int,
        generator: torch.Generator,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]],
        output_type: str,
    ) -> None:
        """Draws one image; `callback_on_step_end` gets its latents. A guidance scale of 1 is none."""
        shape = (1, self.channels, height // self.grid, width // self.grid)
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, device=self.device)
        self.scheduler.set_begin_index(0)
        guided = not math.isclose(guidance_scale, 1.0)
        for step, time in enumerate(tqdm(self.scheduler.timesteps, **self._bar)):
            level = time[None] / self.scheduler.config.num_train_timesteps
            velocity = self.velocity(latents, level, prompt_embeds)
            if guided:
                away = self.velocity(latents, level, negative_prompt_embeds)
                velocity = away + guidance_scale * (velocity - away)
            latents = self.scheduler.step(velocity, time, latents, return_dict=False)[0]
            callback_on_step_end(self, step, time, {"latents": latents})
