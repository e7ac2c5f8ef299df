"""How Anima, Qwen-Image and their relatives see an image: by the VAE of Wan, which is one of videos."""

from pathlib import Path

from modules.model.FlowModel import FlowModel
from modules.model.native_file import NativeTensor, fill_from_file
from modules.model.qwen_keys import qwen_vae_name

import torch
from torch import Tensor, nn


class WanLatents(FlowModel):
    """Each channel of the VAE's latents gets zero mean and unit variance; the transformer cuts patches itself."""

    vae_of_videos = True

    @property
    def image_grid(self) -> int:
        """Pixels of one token; 16 in the published models."""
        return 2 ** len(self.layers_of("vae").config.dim_mult)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[channels, 1, 1]` of the VAE's latents."""
        config = self.vae.config
        mean, spread = (
            torch.tensor(numbers, device=self.device) for numbers in (config.latents_mean, config.latents_std)
        )
        return mean[:, None, None], spread[:, None, None]

    def pack_latents(self, latents: Tensor) -> Tensor:
        mean, spread = self._statistics()
        return (latents - mean) / spread

    def unpack_latents(self, latents: Tensor) -> Tensor:
        mean, spread = self._statistics()
        return latents * spread + mean

    @property
    def packing(self) -> str:
        config = self.layers_of("vae").config
        return f"{list(config.latents_mean)} {list(config.latents_std)}"

    def token_count(self, shape: torch.Size) -> int:
        return (shape[2] // 2) * (shape[3] // 2)

    def image_of_tokens(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents


def read_wan_vae(path: Path, module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`fill_from_file` for an `AutoencoderKLQwenImage`."""
    return fill_from_file(path, module, dtype, lambda name: NativeTensor(qwen_vae_name(name, module.config)))
