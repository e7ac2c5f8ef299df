"""Samples of Anima, of which diffusers has no usual pipeline but blocks that are put together."""

from collections.abc import Callable
from typing import Any

from modules.model.DrawingPipeline import DrawingPipeline

import torch
from torch import Tensor

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor


class AnimaPipeline(DrawingPipeline):
    """Draws latents as diffusers' text-to-image blocks of Anima do, and is called as its usual pipelines are.

    Args:
        scheduler, grid: see `DrawingPipeline`.
        velocity: noised latents `[1, c, h, w]`, noise level `[1]` and prompt `[1, n, d]` -> ε − x.
        channels: of latents.
    """

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
        channels: int,
        grid: int,
        device: torch.device,
    ) -> None:
        super().__init__(scheduler, grid)
        self.velocity, self.channels, self.device = velocity, channels, device

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
        self.draw(
            randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32),
            np.linspace(1.0, 1 / num_inference_steps, num_inference_steps),
            lambda latents, level: self.velocity(latents, level, prompt_embeds),
            lambda latents, level: self.velocity(latents, level, negative_prompt_embeds),
            guidance_scale,
            callback_on_step_end,
        )
