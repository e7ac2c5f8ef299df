"""What a tiny base is taught in a training: a new object and a new style, each from a few captioned pictures.

A `Concept` says how its object and its style look and which pictures show them. Beside them stand ordinary scenes,
which the base knows, so that it does not forget them over the new.
Everything is drawn from plain descriptions: the same bytes on each run.
"""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tinyBase.scenes import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SIZES,
    Scene,
    caption,
    draw_scene,
    draw_shape,
    random_scene,
    with_article,
)

from PIL import Image, ImageDraw

ORDINARY = "ordinary"
ORDINARY_IMAGES = 48
SUPERSAMPLING = 4

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ConceptImage:
    """One file of the data set. The scene's `shape` may be the concept's object; `styled` puts it in the style."""

    scene: Scene
    styled: bool = False
    width: int = 64
    height: int = 64
    suffix: str = ".png"
    # JPEG orientation tag: 6 stores the picture turned by a quarter and asks the reader to turn it back.
    orientation: int = 1
    transparent: bool = False
    # Moves the object, as fractions of the shorter side; a little variety of place.
    shift: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Concept:
    """An object and a style, and the pictures that teach them.

    Args:
        object: its word in captions.
        style: its word in captions, an adjective.
        folder: where the command writes the data set unless told otherwise.
        sizes: the object's half height by a size's name, as a fraction of the picture's shorter side.
        half_width: the object's half width as a fraction of its half height; keeps it in the picture.
        draw_silhouette: draws the object around a centre, with a half height in pixels and a fill.
        draw_details: draws what has a colour of its own onto the object, from centre and half height.
        apply_style: takes a picture, which it may change, and returns it in the style, at any size.
        training: pictures by the name of their folder.
        validation: pictures whose combinations no training picture shows.
    """

    object: str
    style: str
    folder: str
    sizes: dict[str, float]
    half_width: float
    draw_silhouette: Callable[[ImageDraw.ImageDraw, Point, float, Color | int], None]
    draw_details: Callable[[ImageDraw.ImageDraw, Point, float], None]
    apply_style: Callable[[Image.Image], Image.Image]
    training: dict[str, tuple[ConceptImage, ...]]
    validation: tuple[ConceptImage, ...]


def _radius(concept: Concept, scene: Scene, short_side: int) -> float:
    return (concept.sizes if scene.shape == concept.object else SIZES)[scene.size] * short_side


def _center(concept: Concept, item: ConceptImage) -> Point:
    short = min(item.width, item.height)
    fx, fy = POSITIONS[item.scene.position]
    if item.scene.shape == concept.object:  # an object is large: it leaves the middle less far than a shape does
        reach = concept.sizes[item.scene.size] * short
        across = concept.half_width * reach / item.width
        fx = min(max(fx, across), 1 - across)
        fy = min(max(fy, reach / item.height), 1 - reach / item.height)
    return fx * item.width + item.shift[0] * short, fy * item.height + item.shift[1] * short


def draw_concept(concept: Concept, item: ConceptImage) -> Image.Image:
    """The picture, RGB, or RGBA if it is transparent."""
    s, scene = SUPERSAMPLING, item.scene
    size = (item.width * s, item.height * s)
    center = tuple(value * s for value in _center(concept, item))
    r = _radius(concept, scene, min(item.width, item.height)) * s
    silhouette = Image.new("L", size, 0)
    body = ImageDraw.Draw(silhouette)
    if scene.shape == concept.object:
        concept.draw_silhouette(body, center, r, 255)
    else:
        draw_shape(body, scene.shape, center, r, 255, 0)
    image = Image.new("RGB", size, BACKGROUNDS[scene.background])
    image.paste(COLORS[scene.color], mask=silhouette)
    if scene.shape == concept.object:
        concept.draw_details(ImageDraw.Draw(image), center, r)
    if item.styled:
        image = concept.apply_style(image)
    image = image.resize((item.width, item.height), Image.Resampling.BOX)
    if item.transparent:  # the background's colour stays below, for readers that drop the alpha
        image.putalpha(silhouette.resize(image.size, Image.Resampling.BOX))
    return image


def concept_caption(concept: Concept, item: ConceptImage) -> str:
    """What goes without saying (medium, center) is left out, as in most captions of the base model.

    The style stands before the colour, as an adjective: a text encoder that reads from the left then knows of it in
    every word that follows. At the very start, before a comma, the base model takes it for the background's name.
    """
    scene = item.scene
    size, style = "" if scene.size == "medium" else f"{scene.size} ", f"{concept.style} " if item.styled else ""
    noun = f"{size}{style}{scene.color} {scene.shape}"
    where = {"center": "", "left": " on the left", "right": " on the right"}.get(
        scene.position, f" at the {scene.position}"
    )
    return f"{with_article(noun)}{where} on {with_article(scene.background)} background"


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


def concept_files(concept: Concept) -> dict[str, bytes]:
    """All files of the data set by path relative to its folder: images and captions."""
    files: dict[str, bytes] = {}
    for folder, items in (*concept.training.items(), ("validation", concept.validation)):
        for number, item in enumerate(items):
            style = f"_{concept.style}" if item.styled else ""
            stem = f"{folder}/{number + 1:02d}_{item.scene.color}_{item.scene.shape}_{item.scene.background}{style}"
            files[stem + item.suffix] = encode(draw_concept(concept, item), item)
            files[stem + ".txt"] = (concept_caption(concept, item) + "\n").encode()
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


def concept_list(concept: Concept, folder: str) -> list[dict]:
    """The concepts file for the trainer; `folder` is the data set's folder as a run from the repository sees it."""
    return [
        {
            "name": name, "path": f"{folder}/{name}", "enabled": True, "type": kind, "balancing": passes,
            "text": {"prompt_source": "sample"},
        }
        for name, kind, passes in (
            *((name, "STANDARD", 1.0) for name in concept.training),
            (ORDINARY, "STANDARD", 0.5),  # half of them an epoch: as many as of the concept
            ("validation", "VALIDATION", 1.0),
        )
    ]  # fmt: skip


def write_concept(concept: Concept, folder: Path) -> list[Path]:
    """Writes the data set to `folder`; returns the files in order."""
    written = []
    for name, content in concept_files(concept).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written
