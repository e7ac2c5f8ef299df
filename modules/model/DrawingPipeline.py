"""Samples of families of which diffusers has no usual pipeline, or one that needs parts that are not there."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from tqdm import tqdm

# noised latents and noise level `[1]` -> ε − x
Velocity = Callable[[Tensor, Tensor], Tensor]


class DrawingPipeline:
    """Draws latents as diffusers' pipelines do; subclasses are called as these are.

    Args:
        scheduler: of the base model.
        grid: pixels of one latent.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, grid: int) -> None:
        self.scheduler, self.grid = scheduler, grid
        self.image_processor = VaeImageProcessor(vae_scale_factor=grid)
        self._bar: dict[str, Any] = {}

    def set_progress_bar_config(self, **options: Any) -> None:
        self._bar = options

    def draw(
        self,
        latents: Tensor,
        sigmas: Sequence[float],
        toward: Velocity,
        away: Velocity,
        guidance_scale: float,
        callback: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]],
    ) -> None:
        """Draws one image.

        Args:
            latents: its noise, float32.
            sigmas: noise level at the start of each step.
            toward, away: the velocity that the prompt asks for, and the one that it is steered away from.
            guidance_scale: 1 is none, and `away` is not asked.
            callback: gets the latents of each step.
        """
        self.scheduler.set_timesteps(sigmas=sigmas, device=latents.device)
        self.scheduler.set_begin_index(0)
        guided = not math.isclose(guidance_scale, 1.0)
        for step, time in enumerate(tqdm(self.scheduler.timesteps, **self._bar)):
            level = time[None] / self.scheduler.config.num_train_timesteps
            velocity = toward(latents, level)
            if guided:
                other = away(latents, level)
                velocity = other + guidance_scale * (velocity - other)
            latents = self.scheduler.step(velocity, time, latents, return_dict=False)[0]
            callback(self, step, time, {"latents": latents})
