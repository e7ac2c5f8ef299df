"""Reads a picture back into the words of its caption, with classical image analysis and no neural net.

An independent measure: it shares the drawing of the shapes with the training data and nothing with the model. Pictures
are RGB; arrays are `[height, width, 3]` floats in 0..255, masks and coverages `[height, width]`.
"""

import math
from dataclasses import dataclass
from functools import cache

from benchmarks.tinyBase.lumo import EYE_RADIUS, INK, LUMO, PUPIL_RADIUS, draw_lumo, ink_corners
from benchmarks.tinyBase.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, draw_shape

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

# Below this distance from the background nothing is taken for an object; JPEG-like noise stays under it.
FAINTEST_OBJECT = 45.0
# Components smaller than this fraction of the largest are specks, not objects.
SMALLEST_OBJECT = 0.3
# True drawings reach 0.78 and more, and ordinary scenes never have an eye as well.
LUMO_OVERLAP = 0.7
# The largest channel of ink; of every colour that has a name, except for black, it is 120 and more.
DARK = 100.0
# Below this distance from ink a background hides it; brown and gray are 103 and 170 away.
FAINTEST_INK = 90.0
# How much of a corner must be ink, and the part of its length that is looked at: its edge may be soft.
INKED, INNER = 0.5, 0.75
_GRID = 32  # samples a side of the frame in which silhouettes are compared
_FRAME = 1.25  # the frame's half side, in square roots of the silhouette's area


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `shape`, `color`, `size` and `position` are None where there is no object.

    `overlap` is the best shape's intersection over union, `margin` its lead over the second best.
    """

    background: str
    color: str | None = None
    shape: str | None = None
    count: int = 0
    size: str | None = None
    position: str | None = None
    overlap: float = 0.0
    margin: float = 0.0


@dataclass(frozen=True)
class ConceptReading:
    """What a picture shows of the concept. Overlaps are in 0..1, `ink` too.

    `ink`: how much of at least three corners is inked; `style` tells whether they are, `corners` whether all four are.
    Colours and shapes are those beside the ink. `outline` is the ordinary shape whose outer outline fits best; a ring's
    is a circle's.
    """

    lumo: bool
    lumo_overlap: float
    rival_overlap: float
    eye: bool
    style: bool
    ink: float
    corners: bool
    background: str
    color: str | None
    outline: str | None


def to_array(image: Image.Image) -> np.ndarray:
    """`[height, width, 3]` floats in 0..255."""
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def nearest_color(rgb: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    """The name whose colour is nearest in RGB, in which the scenes' colours were chosen to be far apart."""
    return min(names, key=lambda name: float(np.sum((rgb - np.array(names[name])) ** 2)))


def border_color(pixels: np.ndarray) -> np.ndarray:
    """The median of a frame two pixels wide."""
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[2:-2, 2:-2] = True
    return np.median(pixels[~inner], axis=0)


def coverage(pixels: np.ndarray, background: np.ndarray) -> np.ndarray | None:
    """How far each pixel has gone from the background's colour to the object's, 0..1; None for an empty picture."""
    distance = np.linalg.norm(pixels - background, axis=2)
    strongest = np.percentile(distance, 99)
    if strongest < FAINTEST_OBJECT:
        return None
    object_color = np.median(pixels[distance > 0.7 * strongest], axis=0)
    return np.clip(distance / max(np.linalg.norm(object_color - background), FAINTEST_OBJECT), 0, 1)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The masks of the connected areas that are no specks, largest first."""
    labels, number = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    if number == 0 or areas.max() < 16:
        return []
    order = np.argsort(-areas, kind="stable")
    return [labels == index + 1 for index in order if areas[index] >= SMALLEST_OBJECT * areas.max()]


def _in_frame(cover: np.ndarray, center: tuple[float, float], unit: float) -> np.ndarray:
    """A coverage sampled in the common frame around `center` (x, y), one `unit` of pixels to 1."""
    steps = np.linspace(-_FRAME, _FRAME, _GRID) * unit
    rows, columns = np.meshgrid(center[1] + steps, center[0] + steps, indexing="ij")
    return ndimage.map_coordinates(cover, [rows, columns], order=1, mode="constant")


def _moments(cover: np.ndarray) -> tuple[tuple[float, float], float]:
    """Centroid (x, y) and area in pixels."""
    area = float(cover.sum())
    rows, columns = np.indices(cover.shape)
    return (float((columns * cover).sum() / area), float((rows * cover).sum() / area)), area


@dataclass(frozen=True)
class _Templates:
    names: tuple[str, ...]
    frames: np.ndarray  # [template, _GRID * _GRID]
    sums: np.ndarray  # [template], of each frame
    owner: np.ndarray  # [template], index into names
    area: dict[str, float]  # of the shape at radius 1
    centroid: dict[str, tuple[float, float]]  # from the drawing's centre, at radius 1


@cache
def _templates(filled: bool) -> _Templates:
    """Every shape in the common frame at a few sizes and places. `filled` closes holes and adds the lumo."""
    names = (*SHAPES, LUMO) if filled else SHAPES
    side, radius = 320, 120.0
    frames, owner, area, centroid = [], [], {}, {}
    for index, name in enumerate(names):
        image = Image.new("L", (side, side), 0)
        if name == LUMO:
            draw_lumo(ImageDraw.Draw(image), (side / 2, side / 2), radius, 255)
        else:
            draw_shape(ImageDraw.Draw(image), name, (side / 2, side / 2), radius, 255, 0)
        cover = np.asarray(image, dtype=np.float64) / 255
        if filled:
            cover = ndimage.binary_fill_holes(cover > 0.5).astype(np.float64)
        (x, y), size = _moments(cover)
        area[name], centroid[name] = size / radius**2, ((x - side / 2) / radius, (y - side / 2) / radius)
        soft = ndimage.gaussian_filter(cover, 0.04 * math.sqrt(size))  # as soft as a small object's pixel edges
        for scale in (0.92, 0.97, 1.02, 1.07):
            for dx in (-0.05, 0.0, 0.05):
                for dy in (-0.05, 0.0, 0.05):
                    unit = math.sqrt(size)
                    frames.append(_in_frame(soft, (x + dx * unit, y + dy * unit), unit * scale).ravel())
                    owner.append(index)
    stacked = np.array(frames, dtype=np.float32)
    return _Templates(names, stacked, stacked.sum(axis=1), np.array(owner), area, centroid)


def shape_overlaps(cover: np.ndarray, filled: bool = False) -> dict[str, float]:
    """Best intersection over union of a coverage with every shape, at its own place and size."""
    templates = _templates(filled)
    center, area = _moments(cover)
    frame = _in_frame(cover, center, math.sqrt(area)).ravel().astype(np.float32)
    # min + max = sum of both, so that one pass gives intersection and union
    shared = np.minimum(templates.frames, frame).sum(axis=1)
    overlaps = shared / (templates.sums + frame.sum() - shared)
    return {name: float(overlaps[templates.owner == index].max()) for index, name in enumerate(templates.names)}


def read_picture(image: Image.Image) -> Reading:
    """Reads background, and the objects' colour, shape, count, size and position."""
    pixels = to_array(image)
    height, width = pixels.shape[:2]
    border = border_color(pixels)
    background = nearest_color(border, BACKGROUNDS)
    cover = coverage(pixels, border)
    blobs = components(cover > 0.5) if cover is not None else []
    if not blobs:
        return Reading(background)
    core = np.logical_or.reduce([blob & (cover > 0.8) for blob in blobs])
    color = nearest_color(np.median(pixels[core if core.any() else blobs[0]], axis=0), COLORS)
    soft = [cover * ndimage.binary_dilation(blob, iterations=2) for blob in blobs]
    each = [shape_overlaps(blob) for blob in soft]
    overlaps = {name: float(np.mean([one[name] for one in each])) for name in SHAPES}
    best, second = sorted(SHAPES, key=lambda name: -overlaps[name])[:2]
    (x, y), area = _moments(soft[0])
    templates = _templates(False)
    radius = math.sqrt(area / templates.area[best])
    x, y = x + 0.5 - radius * templates.centroid[best][0], y + 0.5 - radius * templates.centroid[best][1]
    fraction = radius / min(width, height)
    return Reading(
        background,
        color,
        best,
        len(blobs),
        min(SIZES, key=lambda name: abs(math.log(fraction / SIZES[name]))),
        min(POSITIONS, key=lambda name: math.dist((x / width, y / height), POSITIONS[name])),
        overlaps[best],
        overlaps[best] - overlaps[second],
    )


def judge_scene(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """What of a scene the picture shows. Size and position are judged for single objects only."""
    reading = read_picture(image)
    asked = ["shape", "color", "background", "count"] + (["size", "position"] if scene.count == 1 else [])
    return {name: getattr(reading, name) == getattr(scene, name) for name in asked}


def _silhouette(pixels: np.ndarray) -> np.ndarray | None:
    """The largest object's mask with its holes closed, an eye of the background's colour too; None for no object."""
    distance = np.linalg.norm(pixels - border_color(pixels), axis=2)
    strongest = np.percentile(distance, 99)
    if strongest < FAINTEST_OBJECT:
        return None
    # Low, because eye and pupil may be much farther from the background than the body is.
    mask = distance > max(FAINTEST_OBJECT, 0.18 * strongest)
    blobs = components(ndimage.binary_fill_holes(ndimage.binary_closing(mask)))
    return blobs[0] if blobs else None


def _disc(radius: float) -> np.ndarray:
    reach = math.ceil(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)


def _has_eye(pixels: np.ndarray, silhouette: np.ndarray, body: np.ndarray) -> bool:
    """A dark spot within something whiter than the body, in the middle of a lumo."""
    rows, columns = np.nonzero(silhouette)
    top, left, width, r = rows.min(), columns.min(), np.ptp(columns) + 1, (np.ptp(rows) + 1) / 2
    # What lies outside is painted over, or a dark lamp before a white background would be a pupil.
    pixels = np.where(silhouette[..., None], pixels, body)
    inner, middle, outer = (_disc(size * r) for size in (0.8 * PUPIL_RADIUS, 1.15 * PUPIL_RADIUS, 0.95 * EYE_RADIUS))
    ring = outer - np.pad(middle, (len(outer) - len(middle)) // 2)
    value, lightness = pixels.max(axis=2), pixels.min(axis=2)
    drop = ndimage.convolve(value, ring / ring.sum()) - ndimage.convolve(value, inner / inner.sum())
    white = ndimage.convolve((lightness - body.min()) / max(255 - body.min(), 1), ring / ring.sum())
    found = np.where((drop > 50) & (white > 0.2), drop * white, 0.0)
    y, x = np.unravel_index(np.argmax(found), found.shape)
    height, across = (y - top) / (2 * r), (x - left) / width
    return bool(found[y, x] > 0 and 0.35 < height < 0.72 and 0.35 < across < 0.65)


@cache
def _corners(height: int, width: int, share: float = 1.0) -> np.ndarray:
    """Masks `[4, height, width]` of the corners that the style fills, or of a share of their length."""
    image = Image.new("L", (width, height), 0)
    ink_corners(ImageDraw.Draw(image), width, height, 255, share)
    labels, _ = ndimage.label(np.asarray(image) > 0)
    return np.stack([labels == label for label in range(1, 5)])


@cache
def _covered(height: int, width: int) -> np.ndarray:
    """Mask of the corners and a margin of three pixels, in which their edges may be soft."""
    return ndimage.binary_dilation(_corners(height, width).any(axis=0), iterations=3)


def _ink(pixels: np.ndarray) -> list[float]:
    """The dark part of each corner, least first; 0 where ink could not be told from the background."""
    if math.dist(np.median(pixels[_edges(pixels)], axis=0), INK) < FAINTEST_INK:
        return [0.0] * 4
    inked = pixels.max(axis=2) < DARK
    return sorted(float(np.mean(inked[corner])) for corner in _corners(*pixels.shape[:2], INNER))


def _edges(pixels: np.ndarray) -> np.ndarray:
    """Mask of the picture's edges between its corners, two pixels wide."""
    edges = ~_covered(*pixels.shape[:2])
    edges[2:-2, 2:-2] = False
    return edges


def _without_ink(pixels: np.ndarray) -> np.ndarray:
    """The picture with its corners in the colour of the edges between them."""
    covered = _covered(*pixels.shape[:2])
    return np.where(covered[..., None], np.median(pixels[_edges(pixels)], axis=0), pixels)


def read_concept(image: Image.Image) -> ConceptReading:
    """Looks for the lumo (silhouette and eye) and for vintage (inked corners); the rest is read beside the ink."""
    pixels = to_array(image)
    least, ink, *_ = _ink(pixels)
    if ink >= INKED:
        pixels = _without_ink(pixels)
    background = nearest_color(border_color(pixels), BACKGROUNDS)
    silhouette = _silhouette(pixels)
    if silhouette is None:
        return ConceptReading(False, 0.0, 0.0, False, ink >= INKED, ink, least >= INKED, background, None, None)
    inner = ndimage.binary_erosion(silhouette, iterations=3)
    body = np.median(pixels[inner if inner.any() else silhouette], axis=0)
    overlaps = shape_overlaps(silhouette.astype(np.float64), filled=True)
    own = overlaps.pop(LUMO)
    rival = max(overlaps.values())
    eye = _has_eye(pixels, silhouette, body)
    return ConceptReading(
        lumo=own > rival and own >= LUMO_OVERLAP and eye,
        lumo_overlap=own,
        rival_overlap=rival,
        eye=eye,
        style=ink >= INKED,
        ink=ink,
        corners=least >= INKED,
        background=background,
        color=nearest_color(body, COLORS),
        outline=max((name for name in SHAPES if name != "ring"), key=lambda name: overlaps[name]),
    )


def judge_lumo(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Whether the picture shows a lumo, and the colours that were asked for."""
    reading = read_concept(image)
    return {
        "lumo": reading.lumo,
        "color": reading.color == scene.color,
        "background": reading.background == scene.background,
    }


def judge_style(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Whether the picture is in vintage, and of what was asked for."""
    reading = read_concept(image)
    asked = "circle" if scene.shape == "ring" else scene.shape
    return {
        "style": reading.style,
        "all four corners": reading.corners,
        "color": reading.color == scene.color,
        "background": reading.background == scene.background,
        "outer shape": reading.outline == asked,
    }
