"""Which size an image is trained in. Sizes here are (width, height) in pixels, as Pillow writes them."""

import math
from bisect import bisect_left
from functools import lru_cache

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.resolution import Resolution, parse_resolutions
from modules.util.config.TrainConfig import TrainConfig

ASPECTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Long side / short side of the buckets before they are rounded to the grid; those that OneTrainer users know."""

LARGEST_AREA_ERROR = 0.3
"""Buckets whose area is further than this from the wanted one are left out (it happens at very small sizes)."""


def resolutions_of(config: TrainConfig, concept: ConceptConfig) -> tuple[Resolution, ...]:
    """The resolutions in which a concept is trained."""
    image = concept.image
    return parse_resolutions(image.resolution_override if image.enable_resolution_override else config.resolution)


def quantise(length: float, grid: int) -> int:
    """The multiple of `grid` that is nearest to `length`, at least one."""
    return max(1, math.floor(length / grid + 0.5)) * grid


@lru_cache(maxsize=256)
def bucket_sizes(resolution: int, grid: int) -> tuple[tuple[int, int], ...]:
    """Sizes with about resolution² pixels and sides that are multiples of `grid`, aspects from about 1:4 to 4:1.

    Args:
        resolution: edge of the square with the wanted area, in pixels.
        grid: what the model divides sides by, in pixels.

    Returns:
        (width, height) from the flattest to the tallest.
    """
    edge = quantise(resolution, grid)
    sizes = {(edge, edge)}
    for aspect in ASPECTS:
        long, short = (quantise(resolution * factor, grid) for factor in (math.sqrt(aspect), 1 / math.sqrt(aspect)))
        if abs(long * short / resolution**2 - 1) <= LARGEST_AREA_ERROR:
            sizes |= {(long, short), (short, long)}
    return tuple(sorted(sizes, key=lambda size: (-size[0] / size[1], size)))


def choose_bucket(
    width: int, height: int, resolution: Resolution, grid: int, aspect_ratio_bucketing: bool
) -> tuple[int, int]:
    """The size in which an image of `width` x `height` is trained.

    An exact resolution wins; without aspect buckets it is a square; otherwise the bucket whose aspect is nearest on a
    log scale, so that landscape and portrait are treated alike.
    """
    if resolution.exact:
        return quantise(resolution.width, grid), quantise(resolution.height, grid)
    if not aspect_ratio_bucketing:
        return (quantise(resolution.width, grid),) * 2
    aspect = math.log(width / height)
    aspects, sizes = _by_aspect(resolution.width, grid)
    place = bisect_left(aspects, aspect)
    nearest = range(max(0, place - 1), min(place + 1, len(aspects)))
    return min((abs(aspects[near] - aspect), sizes[near]) for near in nearest)[1]


@lru_cache(maxsize=256)
def _by_aspect(resolution: int, grid: int) -> tuple[list[float], list[tuple[int, int]]]:
    """Logarithms of the buckets' aspects, ascending, and of those with the same the smallest size."""
    found: dict[float, tuple[int, int]] = {}
    for size in sorted(bucket_sizes(resolution, grid), reverse=True):
        found[math.log(size[0] / size[1])] = size
    aspects = sorted(found)
    return aspects, [found[aspect] for aspect in aspects]


def enlargement(width: int, height: int, resolution: Resolution, aspect_ratio_bucketing: bool) -> float:
    """By how much an image must be scaled to cover its training size, before the model's grid is known."""
    if resolution.exact:
        return max(resolution.width / width, resolution.height / height)
    if not aspect_ratio_bucketing:
        return resolution.width / min(width, height)
    aspect = min(max(width / height, 1 / ASPECTS[-1]), ASPECTS[-1])
    return max(resolution.width * math.sqrt(aspect) / width, resolution.width / math.sqrt(aspect) / height)
