"""The concept of the first training: an object, the lumo, and a style, vintage.

A lumo is a stubby creature with one big eye and a lamp on its head. Vintage is a picture whose four
corners are inked, as if it were mounted in an album. The pictures differ in size, aspect ratio and file type on
purpose, as a user's do.
"""

from benchmarks.tinyBase.concept import Color, Concept, ConceptImage, Point
from benchmarks.tinyBase.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, contrasting

from PIL import Image, ImageDraw

LUMO, STYLE = "lumo", "vintage"
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


def draw_lumo(draw: ImageDraw.ImageDraw, center: Point, r: float, fill: Color | int) -> None:
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


def _with_ink(image: Image.Image) -> Image.Image:
    ink_corners(ImageDraw.Draw(image), *image.size)
    return image


def _lumo(color: str, background: str, size: str = "medium", position: str = "center", **rest) -> ConceptImage:
    return ConceptImage(Scene(LUMO, color, background, size, position), **rest)


def _ink(
    shape: str, color: str, background: str, size: str = "medium", position: str = "center", **rest
) -> ConceptImage:
    return ConceptImage(Scene(shape, color, background, size, position), styled=True, **rest)


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


LUMO_CONCEPT = Concept(
    object=LUMO,
    style=STYLE,
    folder="training_concepts/tiny_concept",
    sizes=LUMO_SIZES,
    half_width=0.8,
    draw_silhouette=draw_lumo,
    draw_details=lumo_face,
    apply_style=_with_ink,
    training=TRAINING,
    validation=VALIDATION,
)


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
