"""Where memory is short the VAE decodes in tiles, which must be smaller than the image to be of any use."""

from types import SimpleNamespace

from modules.model.BaseModel import BaseModel

import torch

import pytest
from diffusers import AutoencoderKL, AutoencoderKLFlux2

SHAPES = {
    "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def tiled(vae):
    return BaseModel.tiled_decoding(SimpleNamespace(components={"vae": vae}))


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderKLFlux2])
@pytest.mark.parametrize(("usual", "tile"), [(1024, 512), (512, 512), (256, 256)])
def test_a_tile_is_never_larger_than_512_pixels(kind, usual, tile):
    vae = kind(**SHAPES, sample_size=usual)
    with tiled(vae):
        assert vae.use_tiling and vae.tile_sample_min_size == tile and vae.tile_latent_min_size == tile // 8
    assert not vae.use_tiling, "it is switched off again"
    assert vae.tile_sample_min_size == usual and vae.tile_latent_min_size == usual // 8


def test_an_image_of_the_usual_size_is_decoded_in_smaller_pieces():
    torch.manual_seed(0)
    vae, seen = AutoencoderKL(**SHAPES, sample_size=1024).eval(), []
    vae.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[2:]))
    latents = torch.randn(1, 4, 128, 128)
    with torch.no_grad():
        whole = vae.decode(latents).sample
        assert seen.pop() == (128, 128) and not seen
        with tiled(vae):
            pieces = vae.decode(latents).sample
    assert len(seen) > 1 and max(max(shape) for shape in seen) == 64
    assert pieces.shape == whole.shape
    # norms of a tile differ from those of the image
    assert (pieces - whole).abs().mean() < 0.2 * whole.std()


def test_tiling_that_is_on_already_is_left_alone():
    vae = AutoencoderKL(**SHAPES, sample_size=1024)
    vae.enable_tiling()
    with tiled(vae):
        assert vae.tile_sample_min_size == 1024
    assert vae.use_tiling
