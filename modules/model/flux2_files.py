"""The transformer and the autoencoder of Flux.2 from files of their own."""

from pathlib import Path

from modules.model.flux2_keys import FLUX_2_LAYOUT
from modules.model.ldm_keys import vae_name
from modules.model.native_file import NativeTensor, fill_from_file

import torch
from torch import nn

_VAE_OUTSIDE = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}


def fill_transformer(path: Path, transformer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`fill_from_file` of a `Flux2Transformer2DModel`."""
    return fill_from_file(path, transformer, dtype, FLUX_2_LAYOUT.tensor)


def fill_vae(path: Path, vae: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same for an `AutoencoderKLFlux2`."""

    def native(name: str) -> NativeTensor:
        layer, ending = name.rsplit(".", 1)
        if layer in _VAE_OUTSIDE:
            return NativeTensor(f"{_VAE_OUTSIDE[layer]}.{ending}")
        # the statistics that latents are normalised with have one name everywhere
        return NativeTensor(name if layer == "bn" else vae_name(name, vae.config, prefix=""))

    return fill_from_file(path, vae, dtype, native)
