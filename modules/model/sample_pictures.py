"""The pictures that a sample starts from, in its size."""

from modules.util.config.SampleConfig import SampleConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

import torch
from torch import Tensor

import numpy as np
from PIL import Image, ImageOps


def read_pictures(
    sample: SampleConfig, source: ConditioningSource, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """A sample's conditioning image `[1, 3, h, w]` in [-1, 1], and where masks are filled the mask `[1, 1, h, w]`.

    Pictures are scaled so that they cover the size, and cut around their centre. Where the mask is white the image is
    grey, 0, as in training. A sample without `sample_inpainting` fills the whole image.

    Args:
        sample: names `base_image_path` and `mask_image_path`.
        source: the fact of the family's class, not NONE.
        size: (height, width) in pixels.

    Raises:
        UserError: a picture is missing or broken.
    """
    masked = source == ConditioningSource.MASK
    if masked and not sample.sample_inpainting:
        return torch.zeros(1, 3, *size), torch.ones(1, 1, *size)
    pixels = _pixels(sample.base_image_path, "base_image_path", size, "RGB") * 2 - 1
    if not masked:
        return pixels, None
    mask = _pixels(sample.mask_image_path, "mask_image_path", size, "L")
    return pixels * (1 - mask), mask


def blank_pictures(
    sample: SampleConfig, source: ConditioningSource, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """`read_pictures` of a sample that fills a whole image, for estimates: no file is read."""
    return torch.zeros(1, 3, *size), torch.ones(1, 1, *size) if source == ConditioningSource.MASK else None


def _pixels(path: str, key: str, size: tuple[int, int], mode: str) -> Tensor:
    """`[1, c, h, w]` in [0, 1]."""
    if not path:
        raise UserError(f"{key}: is empty, expected an image file, from which this sample is to be drawn.")
    try:
        image = decode_image(read_regular(path, LARGEST_FILE)).convert(mode)
    except ImageError as error:
        raise UserError(f"{key}: {path}: {error}") from None
    except OSError as error:
        raise UserError(f"{key}: '{path}' cannot be read: {error.strerror or error}. Name an image file.") from None
    image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(image, dtype=np.uint8)).float() / 255
    return values.reshape(1, *size, -1).movedim(-1, 1).contiguous()
