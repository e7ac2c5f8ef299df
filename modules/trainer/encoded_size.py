"""What a model's encoded images and captions take on disk, found without its weights."""

import copy
import math
from collections.abc import Iterable

from modules.dataLoader.cache_space import EncodedBytes
from modules.dataLoader.Encoder import reduced
from modules.model.BaseModel import BaseModel
from modules.model.ModelComponents import ModelComponents
from modules.model.weight_formats import component_dtype
from modules.util.config.resolution import parse_resolutions
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.UserError import UserError
from modules.util.WithoutNumbers import WithoutNumbers

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
SIDE = 4
"""Of the image that is followed, in units of the model's grid."""


def encoded_bytes(model: BaseModel, cache_text: bool = True) -> EncodedBytes | None:
    """Follows the model's own encoding of one image and one caption on tensors that have no numbers.

    Args:
        model: nothing of it is loaded or changed.
        cache_text: whether captions are cached.

    Returns:
        None if its code can't be followed.
    """
    try:
        return _followed(model, cache_text)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, UserError):
        return None


def _followed(model: BaseModel, cache_text: bool) -> EncodedBytes:
    space, twin, config = WithoutNumbers(), copy.copy(model), model.config

    def load(name: str) -> nn.Module:
        empty = space.module(copy.deepcopy(model.empty_component(name)))
        # diffusers' own warns of layers that stay in float32 even where there are none
        return nn.Module.to(empty, dtype=component_dtype(config, name)).requires_grad_(False).eval()

    twin.components, twin.device = ModelComponents(list(model.components), load, CPU, CPU), CPU
    side = SIDE * model.image_grid
    short = "a photo "
    # as long as captions may be: a word is a token or more
    captions = [short, max(model.text_limits().values()) * short]
    shown: dict[str, Tensor] = {}
    texts: list[dict[str, Tensor]] = [{}]
    with torch.random.fork_rng(devices=[]), space, torch.no_grad():
        pixels = torch.zeros(1, 3, side, side)
        latents = twin.encode_images(pixels)
        if model.conditioning != ConditioningSource.NONE:
            mask = pixels[:, :1] if model.conditioning == ConditioningSource.MASK else None
            shown = twin.encode_conditioning(pixels, mask)
        if cache_text and model.captions_see_conditioning:
            # of pictures of the smallest and the largest size
            shapes = sorted(((size.height, size.width) for size in parse_resolutions(config.resolution)), key=math.prod)
            texts = [
                twin.encode_instructions([caption], torch.zeros(1, 3, *size))
                for caption, size in zip(captions, (shapes[0], shapes[-1]), strict=True)
            ]
        elif cache_text:
            texts = [twin.encode_captions([caption]) for caption in captions]
    sizes = [_bytes(reduced(text, config.text_cache_dtype).values()) for text in texts]
    area, mask_bytes = side * side, 4 * latents.shape[-1] * latents.shape[-2]
    return EncodedBytes(
        image=4 * latents.numel() / area,
        mask=mask_bytes / area,
        conditioning=_bytes(shown.values()) / area,
        caption=sizes[-1],
        short_caption=sizes[0],
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
