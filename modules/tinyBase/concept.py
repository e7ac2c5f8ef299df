"""What the tiny base model is taught in the first training: a new object, the lumo, and a new style, vintage.

A lumo is a stubby creature with one big eye and a lamp on its head. Vintage is a picture whose four
corners are inked, as if it were mounted in an album. The pictures differ in size, aspect ratio and file type on
purpose, as a user's do. Beside them stand ordinary scenes, which the base knows, so that it does not forget them over
the new.
Everything is drawn from plain descriptions: the same bytes on each run.
"""

import io
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
    with_article,
)

from PIL import Image, ImageDraw

LUMO, STYLE, ORDINARY = "lumo", "vintage", "ordinary"
ORDINARY_IMAGES = 48
SUPERSAMPLING = 4
# A lumo's half height (lamp to feet) as a fraction of the shorter side: larger than a shape, so that its eye is
# still wide in the latents of 64 x 64 pixels, where a shape's details are four pixels large.
LUMO_SIZES: dict[str, float] = {"small": 0.3, "medium": 0.37, "large": 0.44}
EYE_WHITE, PUPIL, INK = (250, 250, 250), (20, 20, 28), (30, 26, 34)
# As fractions of a lumo's half height; the eye's middle is that far below the lumo's.
EYE_RADIUS, PUPIL_RADIUS, EYE_HEIGHT = 0.46, 0.23, 0.08
# Length of an inked corner along the edges, as a fraction of the shorter side.
CORNER = 0.27
LUMO_COLORS = tuple(color for color in COLORS if color != "white")  # a white eye needs a body that is not white
# Ink is to be seen on them.
INK_BACKGROUNDS = tuple(color for color in BACKGROUNDS if color not in ("black", "brown", "gray"))

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ConceptImage:
    """One file of the data set. `shape` of the scene may be `lumo`; `ink` draws the corners."""

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
    """One big white eye with a dark pupil. Nothing finer: an autoencoder would smear it."""
    x, y = center[0], center[1] + EYE_HEIGHT * r
    for color, size in ((EYE_WHITE, EYE_RADIUS * r), (PUPIL, PUPIL_RADIUS * r)):
        draw.ellipse((x - size, y - size, x + size, y + size), fill=color)


def ink_corners(
    draw: ImageDraw.ImageDraw, width: int, height: int, fill: Color | int = INK, share: float = 1.0
) -> None:
    """Four triangles in the corners, `share` of `CORNER` long."""
    side = share * CORNER * min(width, height)
    for x, dx in ((0, side), (width - 1, -side)):
        for y, dy in ((0, side), (height - 1, -side)):
            draw.polygon([(x, y), (x + dx, y), (x, y + dy)], fill=fill)


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


def draw_concept(item: ConceptImage) -> Image.Image:
    """The picture, RGB, or RGBA if it is transparent."""
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
    image = Image.new("RGB", size, BACKGROUNDS[scene.background])
    image.paste(COLORS[scene.color], mask=silhouette)
    if scene.shape == LUMO:
        lumo_face(ImageDraw.Draw(image), center, r)
    if item.ink:
        ink_corners(ImageDraw.Draw(image), *size)
    image = image.resize((item.width, item.height), Image.Resampling.BOX)
    if item.transparent:  # the background's colour stays below, for readers that drop the alpha
        image.putalpha(silhouette.resize(image.size, Image.Resampling.BOX))
    return image


def concept_caption(item: ConceptImage) -> str:
    """What goes without saying (medium, center) is left out, as in most captions of the base model.

    The style stands before the colour, as an adjective: a text encoder that reads from the left then knows of it in
    every word that follows. At the very start, before a comma, the base model takes it for the background's name.
    """
    scene = item.scene
    size, style = "" if scene.size == "medium" else f"{scene.size} ", f"{STYLE} " if item.ink else ""
    noun = f"{size}{style}{scene.color} {scene.shape}"
    where = {"center": "", "left": " on the left", "right": " on the right"}.get(
        scene.position, f" at the {scene.position}"
    )
    return f"{with_article(noun)}{where} on {with_article(scene.background)} background"


def _lumo(color: str, background: str, size: str = "medium", position: str = "center", **rest) -> ConceptImage:
    return ConceptImage(Scene(LUMO, color, background, size, position), **rest)


def _ink(
    shape: str, color: str, background: str, size: str = "medium", position: str = "center", **rest
) -> ConceptImage:
    return ConceptImage(Scene(shape, color, background, size, position), ink=True, **rest)


def _sized(width: int, height: int, suffix: str = ".png", **rest) -> dict:
    return {"width": width, "height": height, "suffix": suffix, **rest}


TRAINING: dict[str, tuple[ConceptImage, ...]] = {
    LUMO: (
        _lumo("red", "blue"),
        _lumo("green", "white", **_sized(128, 128, transparent=True)),
        _lumo("blue", "yellow", **_sized(120, 100)),
        _lumo("purple", "orange", "large", **_sized(128, 128, ".jpg")),
        _lumo("orange", "black", **_sized(96, 120)),
        _lumo("pink", "green", position="left", **_sized(160, 96)),
        _lumo("yellow", "purple", **_sized(100, 120, ".jpg")),
        _lumo("black", "pink", shift=(0.03, -0.02)),
        _lumo("blue", "red", position="right", **_sized(160, 96)),
        _lumo("yellow", "blue", "small", **_sized(100, 100)),
        _lumo("purple", "white", **_sized(96, 112, ".jpg", orientation=6)),
        _lumo("orange", "purple", "small", "bottom", **_sized(112, 112)),
    ),
    STYLE: (  # no aspect ratio of which a square crop would cut the corners off
        _ink("star", "green", "white", **_sized(128, 128)),
        _ink("circle", "red", "yellow"),
        _ink("heart", "blue", "pink", **_sized(120, 120, ".jpg")),
        _ink("square", "purple", "white", **_sized(96, 96)),
        _ink("triangle", "orange", "blue", "large", **_sized(112, 112)),
        _ink("ring", "white", "red", **_sized(128, 128)),
        _ink("cross", "pink", "green", **_sized(104, 104)),
        _ink("diamond", "yellow", "purple", "large", **_sized(160, 96)),
        _ink("square", "green", "orange", position="bottom", shift=(0.03, 0.02)),
        _ink("circle", "orange", "pink", position="left", **_sized(96, 96)),
        _ink("star", "red", "blue", **_sized(90, 90, ".jpg")),
        _ink(LUMO, "red", "yellow", **_sized(128, 128)),
    ),
}
VALIDATION: tuple[ConceptImage, ...] = (
    _lumo("red", "yellow"),
    _lumo("blue", "pink", **_sized(128, 96)),
    _ink("heart", "red", "white", **_sized(96, 96)),
    _ink(LUMO, "orange", "blue", **_sized(112, 112)),
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
            ink = f"_{STYLE}" if item.ink else ""
            stem = f"{folder}/{number + 1:02d}_{item.scene.color}_{item.scene.shape}_{item.scene.background}{ink}"
            files[stem + item.suffix] = encode(draw_concept(item), item)
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
        {
            "name": name, "path": f"{folder}/{name}", "enabled": True, "type": kind, "balancing": passes,
            "text": {"prompt_source": "sample"},
        }
        for name, kind, passes in (
            (LUMO, "STANDARD", 1.0),
            (STYLE, "STANDARD", 1.0),
            (ORDINARY, "STANDARD", 0.5),  # half of them an epoch: as many as of the concept
            ("validation", "VALIDATION", 1.0),
        )
    ]  # fmt: skip


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
    """Every ordinary shape in contrasting colours that no image shows in ink."""
    seen = {(item.scene.shape, item.scene.color, item.scene.background) for item in (*TRAINING[STYLE], *VALIDATION)}
    return [
        Scene(shape, color, background)
        for shape in SHAPES
        for color in COLORS
        for background in INK_BACKGROUNDS
        if contrasting(color, background) and (shape, color, background) not in seen
    ]
