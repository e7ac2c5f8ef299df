"""Families whose VAE knows the statistics of patches of its latents, as a batch norm. Axes: `b` batch, `c` channels of
packed latents, `h w` their sides.
"""

from modules.model.FlowModel import FlowModel

import torch.nn.functional as F
from torch import Tensor


class BatchNormLatents(FlowModel):
    """Patches of the VAE's latents are normalised with its batch norm; each is one token."""

    @property
    def image_grid(self) -> int:
        """Pixels of one token; 16 in the published models."""
        config = self.layers_of("vae").config
        return 2 ** (len(config.block_out_channels) - 1) * config.patch_size[0]

    @property
    def latent_epsilon(self) -> float:
        """Is added to each variance."""
        return self.layers_of("vae").config.batch_norm_eps

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[c, 1, 1]` of packed latents."""
        norm = self.vae.bn
        spread = (norm.running_var.float() + self.latent_epsilon).sqrt()
        return norm.running_mean.float()[:, None, None], spread[:, None, None]

    def patches(self, latents: Tensor) -> Tensor:
        """Each channel holds one pixel of a patch of the VAE's own, `[b, c, h, w]`."""
        return F.pixel_unshuffle(latents, self.vae.config.patch_size[0])

    def from_patches(self, patches: Tensor) -> Tensor:
        """Undoes `patches`."""
        return F.pixel_shuffle(patches, self.vae.config.patch_size[0])

    def pack_latents(self, latents: Tensor) -> Tensor:
        mean, spread = self._statistics()
        return (self.patches(latents) - mean) / spread

    def unpack_latents(self, latents: Tensor) -> Tensor:
        mean, spread = self._statistics()
        return self.from_patches(latents * spread + mean)

    @property
    def packing(self) -> str:
        return f"{self.latent_epsilon} packed"
