"""The pictures that a sample starts from, in its size."""

from collections.abc import Sequence

from modules.util.config.errors import Problem
from modules.util.config.SampleConfig import SampleConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image, same_shape
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.found_problems import found
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

import torch
from torch import Tensor

import numpy as np
from PIL import Image, ImageOps


def read_pictures(
    sample: SampleConfig, source: ConditioningSource, size: tuple[int, int], custom: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A sample's conditioning image `[1, 3, h, w]` in [-1, 1], and where masks are filled the mask `[1, 1, h, w]`.

    Pictures are scaled so that they cover the size, and cut around their centre. Where the mask is white the image is
    grey, 0, as in training. A sample without `sample_inpainting` fills the whole image.

    Args:
        sample: names `base_image_path` and `mask_image_path`.
        source: the fact of the family's class, not NONE.
        size: (height, width) in pixels.
        custom: the image is shown as it is, also where the mask is white, as `custom_conditioning_image` has it.

    Raises:
        UserError: a picture is missing or broken, or the mask has another shape than the image.
    """
    if _fills_whole(sample, source):
        return blank_pictures(sample, source, size)
    image, mask = _open_both(sample, source)
    pixels = _values(image, size, Image.Resampling.LANCZOS) * 2 - 1
    if mask is None:
        return pixels, None
    white = _values(mask, size, Image.Resampling.BILINEAR)
    return pixels if custom else pixels * (1 - white), white


def blank_pictures(
    sample: SampleConfig, source: ConditioningSource, size: tuple[int, int], custom: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`read_pictures` of a sample that fills a whole image, and for estimates: no file is read."""
    return torch.zeros(1, 3, *size), torch.ones(1, 1, *size) if source == ConditioningSource.MASK else None


def picture_problems(samples: Sequence[SampleConfig], source: ConditioningSource) -> list[Problem]:
    """Pictures of samples that can't be used, a problem for each sample; disabled ones are passed over.

    Args:
        samples: of the run.
        source: the fact of the family's class.
    """
    problems = []
    for number, sample in enumerate(samples, 1):
        if source == ConditioningSource.NONE or not sample.enabled or _fills_whole(sample, source):
            continue
        for problem in found(_open_both, sample, source):
            problems.append(Problem("samples", f"sample {number}: {problem}"))
    return problems


def _fills_whole(sample: SampleConfig, source: ConditioningSource) -> bool:
    return source == ConditioningSource.MASK and not sample.sample_inpainting


def _open_both(sample: SampleConfig, source: ConditioningSource) -> tuple[Image.Image, Image.Image | None]:
    """The image, and where masks are filled the mask in the image's size."""
    image = _open(sample.base_image_path, "base_image_path", "RGB")
    if source != ConditioningSource.MASK:
        return image, None
    mask = _open(sample.mask_image_path, "mask_image_path", "L")
    if not same_shape(mask.size, image.size):
        raise UserError(
            f"mask_image_path: {sample.mask_image_path} has {mask.width}x{mask.height} px, which is another shape than "
            f"the {image.width}x{image.height} px of {sample.base_image_path}. Give a mask of the image's shape."
        )
    return image, mask if mask.size == image.size else mask.resize(image.size, Image.Resampling.BILINEAR)


def _open(path: str, key: str, mode: str) -> Image.Image:
    if not path:
        raise UserError(f"{key}: is empty, expected an image file, from which this sample is to be drawn.")
    try:
        return decode_image(read_regular(path, LARGEST_FILE)).convert(mode)
    except ImageError as error:
        raise UserError(f"{key}: {path}: {error}. Name another image.") from None
    except OSError as error:
        raise UserError(f"{key}: '{path}' cannot be read: {error.strerror or error}. Name an image file.") from None


def _values(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Tensor:
    """`[1, c, h, w]` in [0, 1]."""
    image = ImageOps.fit(image, (size[1], size[0]), resample)
    values = torch.from_numpy(np.array(image, dtype=np.uint8)).float() / 255
    return values.reshape(1, *size, -1).movedim(-1, 1).contiguous()
