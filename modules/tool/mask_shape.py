"""From what a model says of each pixel to a mask: its values, holes, size and edge. Pure functions on arrays [h, w]."""

from dataclasses import dataclass

from modules.tool.mask_names import HOLES, THRESHOLD

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

WHITE, HALF = 255, 128
# share of steps by eight neighbours: tan(π/8)
OCTAGON = 2**0.5 - 1


@dataclass(frozen=True)
class MaskShape:
    """What is made of a model's values, in this order.

    Attributes:
        threshold: value from which a pixel is white, between 0 and 1.
        soft: greys stay: mid-grey at the threshold, black and white as far from it as the nearer end of 0 to 1 is.
        holes: percent of the picture; black spots inside that are smaller become white.
        grow: pixels by which white grows; negative: shrinks.
        blur: radius of the edge's blur, in pixels.
        invert: black and white change places.
    """

    threshold: float = THRESHOLD
    soft: bool = False
    holes: float = HOLES
    grow: int = 0
    blur: float = 0.0
    invert: bool = False


def shape_mask(values: np.ndarray, size: tuple[int, int], shape: MaskShape) -> np.ndarray:
    """The mask of a picture, uint8.

    Args:
        values: of the model, float32, 0 to 1, in any size.
        size: (width, height) of the picture.
        shape: what is made of them.
    """
    scaled = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(size, Image.Resampling.BILINEAR)
    mask = to_greys(np.asarray(scaled), shape.threshold, shape.soft)
    mask = grow(fill_holes(mask, shape.holes), shape.grow)
    if shape.blur:
        mask = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(shape.blur)))
    return WHITE - mask if shape.invert else mask


def to_greys(values: np.ndarray, threshold: float, soft: bool) -> np.ndarray:
    """Values from 0 to 1 as uint8; see `MaskShape`. At a threshold of 0.5 soft ones are the values themselves."""
    if not soft:
        return np.where(values >= threshold, WHITE, 0).astype(np.uint8)
    ramp = 0.5 + (values - threshold) / (2 * min(threshold, 1 - threshold))
    return np.floor(ramp.clip(0, 1) * WHITE + 0.5).astype(np.uint8)


def fill_holes(mask: np.ndarray, percent: float) -> np.ndarray:
    """Dark spots that touch no edge of the picture and take less than this share of it become white."""
    if not percent:
        return mask
    spots, count = ndimage.label(mask < HALF)
    sizes = np.bincount(spots.ravel(), minlength=count + 1)
    small = sizes < percent / 100 * mask.size
    # 0 is what is no spot
    small[0] = False
    for edge in (spots[0], spots[-1], spots[:, 0], spots[:, -1]):
        small[edge] = False
    return np.where(small[spots], np.uint8(WHITE), mask)


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """White grows by so many pixels in all directions, or shrinks. Greys move along.

    Step by step by the four neighbours or by all eight, so often that points become regular octagons: it goes too far
    by 8 % at most. Beyond the picture's edge lies what lies at it.
    """
    if pixels < 0:
        return WHITE - grow(WHITE - mask, -pixels)
    for turn in range(pixels):
        sides = _spread(mask, 1, mask)
        eight = int((turn + 1) * OCTAGON) > int(turn * OCTAGON)
        # from what has spread sideways: the corners, too
        mask = _spread(sides if eight else mask, 0, sides)
    return mask


def _spread(source: np.ndarray, axis: int, onto: np.ndarray) -> np.ndarray:
    """The largest of `onto` and of the neighbours along an axis in `source`."""
    found = onto.copy()
    near, far = np.moveaxis(found, axis, 0), np.moveaxis(source, axis, 0)
    np.maximum(near[1:], far[:-1], out=near[1:])
    np.maximum(near[:-1], far[1:], out=near[:-1])
    return found


def white_share(mask: np.ndarray) -> float:
    """Mean of a mask, 0 to 1: how much of the picture is learnt."""
    return float(mask.mean()) / WHITE


def is_empty(mask: np.ndarray) -> bool:
    """Whether no pixel is nearer to white than to black."""
    return int(mask.max(initial=0)) < HALF
