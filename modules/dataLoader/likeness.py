"""What a look at all images of a folder together tells: which are the same, nearly the same, or hardly sharp."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.progress import Progress, track
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.regular_file import read_regular

import numpy
from PIL import Image

# side of the small picture by which images are compared; longer side at which sharpness is measured
THUMB, SIDE = 8, 512
NEAR = 3.0
"""Mean difference of the small pictures' values, of 255, up to which two images count as nearly the same: a photo saved
again, another size of it, the next frame of a burst."""
MOST = 5000
"""More images than this are not compared in pairs."""
SOFT_SHARE, SOFT = 0.1, 100.0
"""Detail below this share of the folder's median, and below this variance, counts as hardly sharp."""


@dataclass(frozen=True)
class Likeness:
    """Of the images of a folder.

    Attributes:
        same: groups of paths of files with the same bytes.
        near: pairs of paths of images that look nearly the same.
        soft: paths of images with far less fine detail than the others, perhaps blurred.
    """

    same: list[list[str]] = field(default_factory=list)
    near: list[tuple[str, str]] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Look:
    """An image: its small picture, flat, 0 to 255, and the variance of its Laplacian."""

    path: str
    thumb: numpy.ndarray
    detail: float


def likeness(images: Sequence[DatasetImage], threads: int, progress: Progress | None = None) -> Likeness:
    """Compares images; those that can't be read any more are left out.

    Args:
        images: that passed the dataset check.
        threads: that decode.
        progress: is told how many images are done (stage "compare"); what it raises ends the comparison.
    """
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.sha256, []).append(image.path)
    firsts = [paths[0] for paths in groups.values()]
    with ThreadPoolExecutor(threads) as pool:
        try:
            looks = list(track(pool.map(_look, firsts), len(firsts), "compare", progress, bar=False))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    looks = [look for look in looks if look is not None]
    same = [paths for paths in groups.values() if len(paths) > 1]
    return Likeness(same, _near(looks) if len(looks) <= MOST else [], _soft(looks))


def _look(path: str) -> _Look | None:
    try:
        image = decode_image(read_regular(path, LARGEST_FILE))
    except (ImageError, OSError):
        return None
    thumb = numpy.asarray(image.convert("RGB").resize((THUMB, THUMB), Image.Resampling.BOX), numpy.float32)
    grey = image.convert("L")
    grey.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    values = numpy.asarray(grey, numpy.float32)
    if min(values.shape) < 3:
        return None
    inner = values[1:-1, 1:-1]
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * inner
    return _Look(path, thumb.ravel(), float(laplacian.var()))


def _near(looks: Sequence[_Look]) -> list[tuple[str, str]]:
    """Pairs in the order of the images."""
    if len(looks) < 2:
        return []
    thumbs = numpy.stack([look.thumb for look in looks])
    means = thumbs.mean(1)
    order = numpy.argsort(means, kind="stable")
    found = []
    for place, index in enumerate(order):
        # images whose means are further apart can't be nearer
        end = numpy.searchsorted(means[order], means[index] + NEAR, side="right")
        others = order[place + 1 : end]
        close = others[numpy.abs(thumbs[others] - thumbs[index]).mean(1) <= NEAR]
        found += [tuple(sorted((int(index), int(other)))) for other in close]
    return [(looks[first].path, looks[second].path) for first, second in sorted(found)]


def _soft(looks: Sequence[_Look]) -> list[str]:
    if len(looks) < 2:
        return []
    bound = min(SOFT, SOFT_SHARE * float(numpy.median([look.detail for look in looks])))
    return [look.path for look in looks if look.detail < bound]
