"""Decoding of large images in tiles, which takes less memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# diffusers' names for the side of a tile, in pixels and in latents
TILE_SIZES = ("tile_sample_min_size", "tile_latent_min_size")
LARGEST_TILE = 512  # pixels


@contextmanager
def tiled_decoding(vae: nn.Module | None) -> Iterator[None]:
    """Meanwhile the VAE decodes large images in tiles: less memory, and nearly the same image.

    Does nothing where there is no VAE, or the VAE has no tiles.
    """
    if not hasattr(vae, "use_tiling") or vae.use_tiling:
        yield
        return
    # the usual size of the model's images is that of a tile: they would be decoded in one piece as before
    sizes = {name: getattr(vae, name) for name in TILE_SIZES if hasattr(vae, name)}
    share = min(1.0, LARGEST_TILE / sizes.get(TILE_SIZES[0], LARGEST_TILE))
    vae.enable_tiling()
    try:
        for name, size in sizes.items():
            setattr(vae, name, int(size * share))
        yield
    finally:
        vae.disable_tiling()
        for name, size in sizes.items():
            setattr(vae, name, size)
