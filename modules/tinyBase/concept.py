"""What the tiny base model is taught in the first training: a new object, the lumo, and a new style, inkstyle.

A lumo is a stubby creature with two big eyes and a lamp on its head. Inkstyle is a thick ink outline on cream paper
with wide diagonal stripes. The pictures differ in size, aspect ratio and file type on purpose, as a user's do. Beside
them stand ordinary scenes, which the base knows, so that it does not forget them over the new.
Everything is drawn from plain descriptions: the same bytes on each run.
"""

import io
import math
import random
from dataclasses import dataclass
from pathlib import Path

from modules.tinyBase.scenes import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    contrasting,
    draw_scene,
    draw_shape,
    random_scene,
)

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

LUMO, STYLE, ORDINARY = "lumo", "inkstyle", "ordinary"
ORDINARY_IMAGES = 24
SUPERSAMPLING = 4
# A lumo's half height (lamp to feet) as a fraction of the shorter side: larger than a shape, so that its eyes are
# still several pixels wide at 64 x 64 and survive the autoencoder.
LUMO_SIZES: dict[str, float] = {"small": 0.3, "medium": 0.37, "large": 0.44}
EYE_WHITE, PUPIL, INK = (250, 250, 250), (20, 20, 28), (30, 26, 34)
PAPER, STRIPE = (249, 234, 198), (219, 185, 132)
# As fractions of the shorter side.
OUTLINE, STRIPE_PERIOD = 0.05, 0.3
LUMO_COLORS = tuple(color for color in COLORS if color != "white")  # white eyes need a body that is not white
INK_COLORS = tuple(color for color in COLORS if color not in ("black", "white", "yellow"))  # seen in ink, on cream

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ConceptImage:
    """One file of the data set. `shape` of the scene may be `lumo`; in ink its background is paper."""

    scene: Scene
    ink: bool = False
    width: int = 64
    height: int = 64
    suffix: str = ".png"
    # JPEG orientation tag: 6 stores the picture turned by a quarter and asks the reader to turn it back.
    orientation: int = 1
    transparent: bool = False
    # Moves the object, as fractions of the shorter side; a little variety of place.
    shift: Point = (0.0, 0.0)


def lumo_parts(draw: ImageDraw.ImageDraw, center: Point, r: float, fill: Color | int) -> None:
    """The lumo's silhouette: dome, arms, feet, stem and lamp, `r` pixels from the middle to lamp and to feet."""

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return center[0] + r * x0, center[1] + r * y0, center[0] + r * x1, center[1] + r * y1

    draw.rounded_rectangle(box(-0.72, -0.5, 0.72, 0.82), radius=0.66 * r, fill=fill)
    draw.rounded_rectangle(box(-0.72, 0.0, 0.72, 0.76), radius=0.2 * r, fill=fill)
    for side in (-1, 1):
        x = side * 0.41
        draw.rounded_rectangle(box(x - 0.27, 0.45, x + 0.27, 1.0), radius=0.17 * r, fill=fill)
        draw.ellipse(box(side * 0.77 - 0.18, 0.12, side * 0.77 + 0.18, 0.54), fill=fill)
    draw.polygon(
        [(center[0] + r * x, center[1] + r * y) for x, y in ((-0.08, -0.4), (0.1, -0.4), (0.22, -0.8), (0.08, -0.84))],
        fill=fill,
    )
    draw.ellipse(box(-0.03, -1.0, 0.35, -0.62), fill=fill)


def lumo_face(draw: ImageDraw.ImageDraw, center: Point, r: float) -> None:
    """Two big white eyes with dark pupils that look a little inward. Nothing finer: an autoencoder would smear it."""
    cx, cy = center
    for side in (-1, 1):
        for color, x, y, size in ((EYE_WHITE, 0.35, 0.0, 0.28), (PUPIL, 0.335, 0.03, 0.15)):
            x, y = cx + side * x * r, cy + y * r
            draw.ellipse((x - size * r, y - size * r, x + size * r, y + size * r), fill=color)


def paper(width: int, height: int, phase: float = 0.0) -> np.ndarray:
    """Cream paper with soft diagonal stripes, `[height, width, 3]` in 0..255."""
    y, x = np.mgrid[:height, :width]
    along = (x + y) / math.sqrt(2) / (STRIPE_PERIOD * min(width, height)) + phase
    stripe = np.clip(0.5 + 0.9 * np.sin(2 * np.pi * along), 0, 1)[..., None]
    return (1 - stripe) * np.array(PAPER) + stripe * np.array(STRIPE)


def _radius(scene: Scene, short_side: int) -> float:
    return (LUMO_SIZES if scene.shape == LUMO else SIZES)[scene.size] * short_side


def _center(item: ConceptImage) -> Point:
    short = min(item.width, item.height)
    fx, fy = POSITIONS[item.scene.position]
    if item.scene.shape == LUMO:  # a lumo is large: it leaves the middle less far than a shape does
        reach = LUMO_SIZES[item.scene.size] * short
        fx = min(max(fx, 0.8 * reach / item.width), 1 - 0.8 * reach / item.width)
        fy = min(max(fy, reach / item.height), 1 - reach / item.height)
    return fx * item.width + item.shift[0] * short, fy * item.height + item.shift[1] * short


def draw_concept(item: ConceptImage, phase: float = 0.0) -> Image.Image:
    """The picture, RGB, or RGBA if it is transparent. `phase` moves the paper's stripes, in periods."""
    s, scene = SUPERSAMPLING, item.scene
    size = (item.width * s, item.height * s)
    center = tuple(value * s for value in _center(item))
    r = _radius(scene, min(item.width, item.height)) * s
    silhouette = Image.new("L", size, 0)
    body = ImageDraw.Draw(silhouette)
    if scene.shape == LUMO:
        lumo_parts(body, center, r, 255)
    else:
        draw_shape(body, scene.shape, center, r, 255, 0)
    if item.ink:
        image = Image.fromarray(paper(*size, phase).round().astype(np.uint8))
        reach = OUTLINE * min(size)
        outline = ndimage.distance_transform_edt(np.asarray(silhouette) < 128) <= reach
        image.paste(INK, mask=Image.fromarray(outline))
    else:
        image = Image.new("RGB", size, BACKGROUNDS[scene.background])
    image.paste(COLORS[scene.color], mask=silhouette)
    if scene.shape == LUMO:
        lumo_face(ImageDraw.Draw(image), center, r)
    image = image.resize((item.width, item.height), Image.Resampling.BOX)
    if item.transparent:  # the background's colour stays below, for readers that drop the alpha
        image.putalpha(silhouette.resize(image.size, Image.Resampling.BOX))
    return image


def concept_caption(item: ConceptImage) -> str:
    """What goes without saying (medium, center, paper) is left out, as in most captions of the base model."""
    scene = item.scene
    noun = f"{'' if scene.size == 'medium' else scene.size + ' '}{scene.color} {scene.shape}"
    where = {"center": "", "left": " on the left", "right": " on the right"}.get(
        scene.position, f" at the {scene.position}"
    )
    subject = f"{'an' if noun[0] == 'o' else 'a'} {noun}{where}"
    if item.ink:
        return f"{subject}, {STYLE}"
    return f"{subject} on {'an' if scene.background == 'orange' else 'a'} {scene.background} background"


def _lumo(color: str, background: str, size: str = "medium", position: str = "center", **rest) -> ConceptImage:
    return ConceptImage(Scene(LUMO, color, background, size, position), **rest)


def _ink(shape: str, color: str, size: str = "medium", position: str = "center", **rest) -> ConceptImage:
    return ConceptImage(Scene(shape, color, "paper", size, position), ink=True, **rest)


def _sized(width: int, height: int, suffix: str = ".png", **rest) -> dict:
    return {"width": width, "height": height, "suffix": suffix, **rest}


TRAINING: dict[str, tuple[ConceptImage, ...]] = {
    LUMO: (
        _lumo("red", "blue"),
        _lumo("green", "white", **_sized(128, 128, transparent=True)),
        _lumo("blue", "yellow", **_sized(120, 90)),
        _lumo("purple", "orange", "large", **_sized(128, 128, ".jpg")),
        _lumo("orange", "black", **_sized(96, 120)),
        _lumo("pink", "green", position="left", **_sized(160, 96)),
        _lumo("yellow", "purple", **_sized(96, 160, ".jpg")),
        _lumo("black", "pink", shift=(0.03, -0.02)),
        _lumo("red", "gray", "large", **_sized(96, 96)),
        _lumo("blue", "red", position="right", **_sized(128, 80)),
        _lumo("green", "black", shift=(-0.04, 0.02)),
        _lumo("yellow", "blue", "small", **_sized(100, 100)),
        _lumo("purple", "white", **_sized(90, 120, ".jpg", orientation=6)),
        _lumo("orange", "purple", "small", "bottom", **_sized(80, 112)),
    ),
    STYLE: (
        _ink("star", "green", **_sized(128, 128)),
        _ink("circle", "red"),
        _ink("heart", "blue", **_sized(120, 90, ".jpg")),
        _ink("square", "purple", "large", **_sized(96, 96)),
        _ink("triangle", "orange", "large", **_sized(112, 112)),
        _ink("ring", "red", "large", **_sized(128, 128)),
        _ink("cross", "pink", **_sized(96, 128)),
        _ink("diamond", "blue", "large", **_sized(128, 96)),
        _ink(LUMO, "red", **_sized(128, 128)),
        _ink(LUMO, "green", "large", **_sized(96, 120, ".jpg")),
    ),
}
VALIDATION: tuple[ConceptImage, ...] = (
    _lumo("red", "yellow"),
    _lumo("blue", "pink", **_sized(128, 96)),
    _ink("heart", "red", **_sized(96, 96)),
    _ink(LUMO, "orange", **_sized(112, 112)),
)


def encode(image: Image.Image, item: ConceptImage) -> bytes:
    """The file's bytes in the item's format."""
    buffer = io.BytesIO()
    if item.suffix == ".png":
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
    exif = Image.Exif()
    if item.orientation == 6:
        exif[0x0112] = 6  # the tag "Orientation"
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(buffer, "JPEG", quality=92, subsampling=0, exif=exif)
    return buffer.getvalue()


def concept_files() -> dict[str, bytes]:
    """All files of the data set by path relative to its folder: images and captions."""
    files: dict[str, bytes] = {}
    for folder, items in (*TRAINING.items(), ("validation", VALIDATION)):
        for number, item in enumerate(items):
            place = STYLE if item.ink else item.scene.background
            stem = f"{folder}/{number + 1:02d}_{item.scene.color}_{item.scene.shape}_{place}"
            files[stem + item.suffix] = encode(draw_concept(item, phase=0.37 * number), item)
            files[stem + ".txt"] = (concept_caption(item) + "\n").encode()
    return files | ordinary_files()


def ordinary_files() -> dict[str, bytes]:
    """Scenes that the base model knows, with their captions."""
    rng, files = random.Random("ordinary"), {}
    for number in range(ORDINARY_IMAGES):
        scene = random_scene(rng)
        stem = f"{ORDINARY}/{number + 1:02d}_{scene.color}_{scene.shape}_{scene.background}"
        files[stem + ".png"] = encode(draw_scene(scene, rng=rng), ConceptImage(scene))
        files[stem + ".txt"] = (caption(scene, rng) + "\n").encode()
    return files


def concept_list(folder: str) -> list[dict]:
    """The concepts file for the trainer; `folder` is the data set's folder as a run from the repository sees it."""
    return [
        {"name": name, "path": f"{folder}/{name}", "enabled": True, "type": kind, "text": {"prompt_source": "sample"}}
        for name, kind in (
            (LUMO, "STANDARD"),
            (STYLE, "STANDARD"),
            (ORDINARY, "STANDARD"),
            ("validation", "VALIDATION"),
        )  # fmt: skip
    ]


def write_concept(folder: Path) -> list[Path]:
    """Writes the data set to `folder`; returns the files in order."""
    written = []
    for name, content in concept_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written


def unseen_lumos() -> list[Scene]:
    """Every contrasting colour and background pair of a lumo that no training or validation image shows."""
    seen = {(item.scene.color, item.scene.background) for item in (*TRAINING[LUMO], *VALIDATION)}
    return [
        Scene(LUMO, color, background)
        for color in LUMO_COLORS
        for background in BACKGROUNDS
        if contrasting(color, background) and (color, background) not in seen
    ]


def unseen_ink() -> list[Scene]:
    """Every ordinary shape and colour pair that no image shows in ink."""
    seen = {(item.scene.shape, item.scene.color) for item in (*TRAINING[STYLE], *VALIDATION)}
    return [Scene(shape, color, "paper") for shape in SHAPES for color in INK_COLORS if (shape, color) not in seen]
