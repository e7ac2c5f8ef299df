"""Reads a picture back into the words of its caption, with classical image analysis and no neural net.

An independent measure: it shares the drawing of the shapes with the training data and nothing with the model. Pictures
are RGB; arrays are `[height, width, 3]` floats in 0..255, masks and coverages `[height, width]`.
"""

import math
from dataclasses import dataclass
from functools import cache

from modules.tinyBase.concept import LUMO, OUTLINE, PAPER, STRIPE, STRIPE_PERIOD, lumo_parts
from modules.tinyBase.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, draw_shape

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

# Below this distance from the background nothing is taken for an object; JPEG-like noise stays under it.
FAINTEST_OBJECT = 45.0
# Components smaller than this fraction of the largest are specks, not objects.
SMALLEST_OBJECT = 0.3
# True drawings reach 0.78 and more, and ordinary scenes never have eyes as well.
LUMO_OVERLAP = 0.7
# How much of the rim must be dark; true drawings reach 0.97 and more.
INKED = 0.7
# How strong the paper's stripes must be; true drawings reach 0.9 and more.
STRIPED = 0.4
GROUNDS = {**BACKGROUNDS, "paper": PAPER, "stripe": STRIPE}
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
    """What a picture shows of the concept. Overlaps are in 0..1, `ink` and `stripes` too.

    `outline` is the ordinary shape whose outer outline fits best; a ring's is a circle's.
    """

    lumo: bool
    lumo_overlap: float
    rival_overlap: float
    eyes: bool
    style: bool
    paper: bool
    ink: float
    stripes: float
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
    """The masks of the connected parts that are no specks, largest first."""
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
            lumo_parts(ImageDraw.Draw(image), (side / 2, side / 2), radius, 255)
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
    parts = components(cover > 0.5) if cover is not None else []
    if not parts:
        return Reading(background)
    core = np.logical_or.reduce([part & (cover > 0.8) for part in parts])
    color = nearest_color(np.median(pixels[core if core.any() else parts[0]], axis=0), COLORS)
    soft = [cover * ndimage.binary_dilation(part, iterations=2) for part in parts]
    each = [shape_overlaps(part) for part in soft]
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
        len(parts),
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


def _from_ground(pixels: np.ndarray) -> np.ndarray:
    """Each pixel's distance from the background's colour, or from the nearest tone of striped paper."""
    border = border_color(pixels)
    ground = np.linalg.norm(pixels - border, axis=2)
    if nearest_color(border, GROUNDS) not in ("paper", "stripe"):
        return ground
    axis = np.array(PAPER, dtype=np.float64) - STRIPE
    tone = ((pixels - STRIPE) @ axis / (axis @ axis))[..., None]
    off = pixels - (STRIPE + np.clip(tone, 0, 1) * axis)
    off = off - border_color(pixels - (STRIPE + tone * axis))  # a tint of the whole picture
    return np.minimum(ground, np.linalg.norm(off, axis=2))


def _silhouette(pixels: np.ndarray) -> np.ndarray | None:
    """The largest object's mask with its holes closed, eyes of the background's colour too; None for no object."""
    distance = _from_ground(pixels)
    strongest = np.percentile(distance, 99)
    if strongest < FAINTEST_OBJECT:
        return None
    # Low, because eyes and pupils may be much farther from the background than the body is.
    mask = distance > max(FAINTEST_OBJECT, 0.18 * strongest)
    parts = components(ndimage.binary_fill_holes(ndimage.binary_closing(mask)))
    return parts[0] if parts else None


def _disc(radius: float) -> np.ndarray:
    reach = math.ceil(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)


def _eye_map(pixels: np.ndarray, body: np.ndarray, r: float) -> np.ndarray:
    """How much each pixel looks like a pupil within the white of an eye, for a lumo of half height `r`; 0 is not."""
    inner, middle, outer = (_disc(fraction * r) for fraction in (0.12, 0.17, 0.28))
    ring = outer - np.pad(middle, (len(outer) - len(middle)) // 2)
    value, lightness = pixels.max(axis=2), pixels.min(axis=2)
    drop = ndimage.convolve(value, ring / ring.sum()) - ndimage.convolve(value, inner / inner.sum())
    white = ndimage.convolve((lightness - body.min()) / max(255 - body.min(), 1), ring / ring.sum())
    return np.where((drop > 50) & (white > 0.2), drop * white, 0.0)


def _has_eyes(pixels: np.ndarray, silhouette: np.ndarray, body: np.ndarray) -> bool:
    """Two dark spots within something whiter than the body, side by side at a lumo's eyes' height."""
    rows, columns = np.nonzero(silhouette)
    top, left, r = rows.min(), columns.min(), (np.ptp(rows) + 1) / 2
    width = np.ptp(columns) + 1
    # What lies outside is painted over, or a dark lamp before a white background would be a pupil.
    found = np.where(silhouette, _eye_map(np.where(silhouette[..., None], pixels, body), body, r), 0.0)
    eyes: list[tuple[int, int]] = []
    for _ in range(2):
        y, x = np.unravel_index(np.argmax(found), found.shape)
        if found[y, x] <= 0:
            return False
        eyes.append((int(y), int(x)))
        ys, xs = np.ogrid[: found.shape[0], : found.shape[1]]
        found = np.where(np.hypot(ys - y, xs - x) < 0.4 * r, 0.0, found)
    (y0, x0), (y1, x1) = eyes
    height, middle = ((y0 + y1) / 2 - top) / (2 * r), ((x0 + x1) / 2 - left) / width
    apart = abs(y0 - y1) < 0.25 * r and 0.45 * r < abs(x0 - x1) < 1.1 * r
    return bool(apart and 0.3 < height < 0.7 and 0.3 < middle < 0.7)


def _ink(pixels: np.ndarray, silhouette: np.ndarray) -> float:
    """The fraction of the silhouette's rim that is dark, 0 where the inside is as dark as the rim."""
    depth = ndimage.distance_transform_edt(silhouette)
    value = pixels.max(axis=2)
    line = OUTLINE * min(pixels.shape[:2])
    inside = depth > max(1.6 * line, 0.5 * depth.max())
    # An upper quantile: a ring's hole has an outline of its own inside.
    if not inside.any() or np.percentile(value[inside], 70) < 125:
        return 0.0
    # The darkest value on the way in counts: the outermost pixel is half paper.
    band = np.where((depth > 0) & (depth <= 1.3 * line), value, 255.0)
    darkest = ndimage.minimum_filter(band, size=2 * max(1, round(0.6 * line)) + 1)
    return float(np.mean(darkest[(depth > 0) & (depth <= 1.5)] < 120))


def _stripes(pixels: np.ndarray, outside: np.ndarray) -> float:
    """How strongly the ground swings between paper and stripe along the falling diagonal; 1 is as drawn."""
    axis = np.array(PAPER, dtype=np.float64) - STRIPE
    tone = ((pixels - STRIPE) @ axis / (axis @ axis))[outside]
    rows, columns = np.nonzero(outside)
    along = (rows + columns) / math.sqrt(2) / min(pixels.shape[:2])
    tone = tone - tone.mean()
    waves = [
        abs(np.mean(tone * np.exp(2j * np.pi * along / (STRIPE_PERIOD * stretch))))
        for stretch in (0.8, 0.9, 1.0, 1.1, 1.25)
    ]
    return float(min(1.0, max(waves) * 2 / 0.54))  # 0.54: the drawn wave's amplitude, clipped sine and all


def read_concept(image: Image.Image) -> ConceptReading:
    """Looks for the lumo (silhouette and two eyes) and for inkstyle (dark outline, paper, stripes)."""
    pixels = to_array(image)
    silhouette = _silhouette(pixels)
    if silhouette is None:
        return ConceptReading(False, 0.0, 0.0, False, False, False, 0.0, 0.0, None, None)
    line = OUTLINE * min(pixels.shape[:2])
    inner = ndimage.binary_erosion(silhouette, iterations=max(1, round(line)))
    body = np.median(pixels[inner if inner.any() else silhouette], axis=0)
    ink = _ink(pixels, silhouette)
    # An outline fattens the silhouette: take it off before the comparison.
    figure = ndimage.distance_transform_edt(silhouette) > 0.8 * line if ink >= INKED else silhouette
    overlaps = shape_overlaps(figure.astype(np.float64), filled=True)
    own = overlaps.pop(LUMO)
    rival = max(overlaps.values())
    eyes = _has_eyes(pixels, silhouette, body)
    outside = ~ndimage.binary_dilation(silhouette, iterations=2)
    ground = np.median(pixels[outside], axis=0) if outside.any() else border_color(pixels)
    paper = nearest_color(ground, GROUNDS) in ("paper", "stripe")
    stripes = _stripes(pixels, outside) if outside.any() else 0.0
    return ConceptReading(
        lumo=own > rival and own >= LUMO_OVERLAP and eyes,
        lumo_overlap=own,
        rival_overlap=rival,
        eyes=eyes,
        style=paper and ink >= INKED,
        paper=paper,
        ink=ink,
        stripes=stripes,
        color=nearest_color(body, COLORS),
        outline=max((name for name in SHAPES if name != "ring"), key=lambda name: overlaps[name]),
    )


def judge_lumo(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Whether the picture shows a lumo, and the colours that were asked for."""
    reading = read_concept(image)
    return {
        "lumo": reading.lumo,
        "color": reading.color == scene.color,
        "background": nearest_color(border_color(to_array(image)), BACKGROUNDS) == scene.background,
    }


def judge_style(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Whether the picture is in inkstyle (outline on paper), striped, and of what was asked for."""
    reading = read_concept(image)
    asked = "circle" if scene.shape == "ring" else scene.shape
    return {
        "style": reading.style,
        "ink outline": reading.ink >= INKED,
        "paper": reading.paper,
        "stripes": reading.paper and reading.stripes >= STRIPED,
        "color": reading.color == scene.color,
        "outer shape": reading.outline == asked,
    }
