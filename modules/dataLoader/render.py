"""From a decoded image and a variation to the pixels that are encoded.

Axes: h, w height and width of the bucket.
"""

import math
from dataclasses import dataclass, replace

from modules.dataLoader.ImageVariation import ImageVariation

import torch
from torch import Tensor

import numpy as np
from PIL import Image

RENDER_VERSION = 1
"""Part of every cache key. To be raised when the same variation gives other pixels than before."""

GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Geometry:
    """Which part of an image becomes which pixels.

    Attributes:
        box: (left, top, right, bottom) in pixels of the source.
        inner: (width, height) to which the box is scaled; other than `size` if it is turned afterwards.
        size: (width, height) of the bucket; its centre is that of `inner`.
        angle: degrees, counter-clockwise.
        flip: mirrored left to right at the end.
    """

    box: tuple[float, float, float, float]
    inner: tuple[int, int]
    size: tuple[int, int]
    angle: float
    flip: bool


def find_geometry(width: int, height: int, size: tuple[int, int], variation: ImageVariation) -> Geometry:
    """Scales an image so that it covers its bucket, and places the crop.

    A turned crop is enlarged until it lies inside the image, so that no empty corners are trained.

    Args:
        width, height: of the source, in pixels.
        size: (width, height) of the bucket.
        variation: gives angle, flip, and the place of the crop.
    """
    inner = size
    if variation.angle % 360:
        sine, cosine = (abs(f(math.radians(variation.angle))) for f in (math.sin, math.cos))
        # two pixels more: bicubic resampling looks beyond the edge
        inner = (
            math.ceil(size[0] * cosine + size[1] * sine) + 2,
            math.ceil(size[0] * sine + size[1] * cosine) + 2,
        )
    scale = max(inner[0] / width, inner[1] / height)
    box_width, box_height = min(inner[0] / scale, width), min(inner[1] / scale, height)
    left = variation.crop[0] * (width - box_width)
    top = variation.crop[1] * (height - box_height)
    box = (left, top, min(left + box_width, width), min(top + box_height, height))
    return Geometry(box, inner, size, variation.angle % 360, variation.flip)


def scaled_geometry(geometry: Geometry, size: tuple[int, int], other: tuple[int, int]) -> Geometry:
    """The same part of a picture in another number of pixels.

    Args:
        geometry: of the picture as it is.
        size: (width, height) of the picture.
        other: of the one that shows the same.
    """
    factors = (other[0] / size[0], other[1] / size[1]) * 2
    left, top, right, bottom = (place * factor for place, factor in zip(geometry.box, factors, strict=True))
    return replace(geometry, box=(left, top, min(right, other[0]), min(bottom, other[1])))


def apply_geometry(image: Image.Image, geometry: Geometry, resample: Image.Resampling) -> Image.Image:
    """Crops, scales, turns and mirrors an image to its bucket's size."""
    image = image.resize(geometry.inner, resample, box=geometry.box)
    if geometry.angle:
        # maps each pixel of the bucket to a place in `image`, centre to centre
        sine, cosine = math.sin(math.radians(geometry.angle)), math.cos(math.radians(geometry.angle))
        (inner_x, inner_y), (x, y) = ([side / 2 for side in sides] for sides in (geometry.inner, geometry.size))
        matrix = (cosine, -sine, inner_x - cosine * x + sine * y, sine, cosine, inner_y - sine * x - cosine * y)
        image = image.transform(geometry.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else image


def render_pixels(image: Image.Image, geometry: Geometry, variation: ImageVariation) -> Tensor:
    """The pixels that the image encoder sees: [3, h, w], float32 in [-1, 1]."""
    image = apply_geometry(image, geometry, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).to(torch.float32) / 255
    return (change_colours(pixels, variation) * 2 - 1).contiguous()


def render_mask(mask: Image.Image | None, geometry: Geometry, variation: ImageVariation) -> Tensor:
    """The mask of the rendered pixels: [1, h, w], float32 in [0, 1]; no mask file means 1 everywhere."""
    if mask is None:
        values = torch.ones(1, geometry.size[1], geometry.size[0])
    else:
        mask = apply_geometry(mask, geometry, Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(mask, dtype=np.uint8)).to(torch.float32)[None] / 255
    return values if variation.mask_circle is None else cut_to_circle(values, *variation.mask_circle)


def cut_to_circle(mask: Tensor, seed: int, share: float) -> Tensor:
    """Keeps of a mask [1, h, w] a disc around a random point of it.

    Args:
        mask: values in [0, 1].
        seed: chooses the point.
        share: radius, as a share of the distance to the furthest point of the mask.
    """
    rows, columns = torch.nonzero(mask[0] > 0.5, as_tuple=True)
    if len(rows) == 0:
        return mask
    centre = seed % len(rows)
    y, x = torch.arange(mask.shape[1])[:, None] - rows[centre], torch.arange(mask.shape[2])[None] - columns[centre]
    distance = (y * y + x * x).to(torch.float32).sqrt()
    radius = share * distance[rows, columns].max()
    return mask * (distance <= radius)


def change_colours(pixels: Tensor, variation: ImageVariation) -> Tensor:
    """Brightness, contrast, saturation and hue of pixels [3, h, w] in [0, 1], in this order.

    p·brightness; m + (p − m)·contrast with m the mean grey; g + (p − g)·saturation with g the pixel's grey; hue turned
    by a share of the circle. After each, values are cut to [0, 1].
    """
    if variation.brightness != 1:
        pixels = (pixels * variation.brightness).clamp(0, 1)
    if variation.contrast != 1:
        mean = grey(pixels).mean()
        pixels = (mean + (pixels - mean) * variation.contrast).clamp(0, 1)
    if variation.saturation != 1:
        own = grey(pixels)
        pixels = (own + (pixels - own) * variation.saturation).clamp(0, 1)
    return turn_hue(pixels, variation.hue) if variation.hue else pixels


def grey(pixels: Tensor) -> Tensor:
    """Perceived brightness of pixels: [3, h, w] -> [1, h, w]."""
    return (pixels * pixels.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True)


def turn_hue(pixels: Tensor, shift: float) -> Tensor:
    """Turns the hue of pixels [3, h, w] in [0, 1] by a share of the circle, value and saturation (HSV) kept."""
    red, green, blue = pixels
    value, smallest = pixels.max(0).values, pixels.min(0).values
    chroma = value - smallest
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * shift
    # each channel is value minus chroma times a trapezoid of the hue, whose phase differs by channel
    phases = torch.stack([(hue + phase).remainder(6) for phase in (5, 3, 1)])
    return value - chroma * torch.minimum(phases, 4 - phases).clamp(0, 1)
