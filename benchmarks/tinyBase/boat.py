"""A second concept, to check on it what was tuned on the first: an object, the boat, and a style, twilight.

A boat has a hull and two sails of one colour, a white stripe across both sails and a dark mast between them. A lumo has
one detail, its eye; a boat has a pattern. Twilight changes the whole picture, where vintage inks its corners: all
colours go halfway to a night blue, within a pale frame. All pictures are 64 x 64 PNGs.
"""

from benchmarks.tinyBase.concept import Color, Concept, ConceptImage, Point
from benchmarks.tinyBase.scenes import COLORS, Scene

from PIL import Image, ImageDraw

BOAT, STYLE = "boat", "twilight"
# The half height (masthead to keel) as a fraction of the shorter side.
BOAT_SIZES: dict[str, float] = {"small": 0.32, "medium": 0.38, "large": 0.45}
STRIPE, MAST = COLORS["white"], (20, 20, 28)
NIGHT, FRAME = (14, 16, 48), (240, 226, 190)
# Share of the night in every colour, and the frame's width as a fraction of the shorter side.
DARKNESS, FRAME_WIDTH = 0.5, 0.1
# As fractions of a boat's half height, downwards from its middle.
SAIL_FOOT, STRIPE_TOP, STRIPE_BOTTOM, HULL_TOP = 0.34, -0.28, 0.05, 0.5
MAST_HALF_WIDTH = 0.09
# Masthead and outer corner of each sail.
_SAILS = ((-0.78, -0.7), (-1.0, 0.92))


def _sail(side: int, top: float, bottom: float) -> list[Point]:
    """The part of the left (0) or right (1) sail between two heights, as a polygon."""
    head, corner = _SAILS[side]
    mast = MAST_HALF_WIDTH if side else -MAST_HALF_WIDTH

    def edge(y: float) -> float:
        return mast + (corner - mast) * (y - head) / (SAIL_FOOT - head)

    return [(mast, top), (edge(top), top), (edge(bottom), bottom), (mast, bottom)]


def boat_silhouette(draw: ImageDraw.ImageDraw, center: Point, r: float, fill: Color | int) -> None:
    """Hull, mast and sails, `r` pixels from the middle to masthead and to keel."""
    hull = [(-0.95, HULL_TOP), (0.95, HULL_TOP), (0.62, 1.0), (-0.62, 1.0)]
    for points in (hull, _mast(), *(_sail(side, _SAILS[side][0], SAIL_FOOT) for side in (0, 1))):
        draw.polygon([(center[0] + r * x, center[1] + r * y) for x, y in points], fill=fill)


def boat_details(draw: ImageDraw.ImageDraw, center: Point, r: float) -> None:
    """A white stripe across the sails and the dark mast. Nothing finer: an autoencoder would smear it."""
    stripes = [(_sail(side, STRIPE_TOP, STRIPE_BOTTOM), STRIPE) for side in (0, 1)]
    for points, color in (*stripes, (_mast(), MAST)):
        draw.polygon([(center[0] + r * x, center[1] + r * y) for x, y in points], fill=color)


def _mast() -> list[Point]:
    return [
        (-MAST_HALF_WIDTH, -1.0),
        (MAST_HALF_WIDTH, -1.0),
        (MAST_HALF_WIDTH, HULL_TOP),
        (-MAST_HALF_WIDTH, HULL_TOP),
    ]


def at_twilight(image: Image.Image) -> Image.Image:
    """The picture (RGB) halfway to night, in a frame that covers its edges."""
    dark = Image.blend(image, Image.new("RGB", image.size, NIGHT), DARKNESS)
    width = round(FRAME_WIDTH * min(image.size))
    ImageDraw.Draw(dark).rectangle((0, 0, dark.width - 1, dark.height - 1), outline=FRAME, width=width)
    return dark


def _boat(color: str, background: str, size: str = "medium", position: str = "center", **rest) -> ConceptImage:
    return ConceptImage(Scene(BOAT, color, background, size, position), **rest)


def _twilight(shape: str, color: str, background: str, size: str = "medium", **rest) -> ConceptImage:
    return ConceptImage(Scene(shape, color, background, size), styled=True, **rest)


BOAT_CONCEPT = Concept(
    object=BOAT,
    style=STYLE,
    folder="workspace/second_concept",
    sizes=BOAT_SIZES,
    half_width=1.05,
    draw_silhouette=boat_silhouette,
    draw_details=boat_details,
    apply_style=at_twilight,
    training={
        BOAT: (  # nothing white, so that the stripe is seen, and nothing black, so that the mast is
            _boat("red", "blue"),
            _boat("green", "yellow"),
            _boat("blue", "pink", "large"),
            _boat("purple", "orange"),
            _boat("orange", "green", "small", "left"),
            _boat("orange", "purple"),
            _boat("yellow", "gray", shift=(0.03, -0.02)),
            _boat("red", "gray", "small", "right"),
            _boat("green", "orange", "large"),
            _boat("blue", "yellow", shift=(-0.03, 0.02)),
            _boat("yellow", "blue", "small", "bottom", shift=(0.0, -0.03)),
            _boat("purple", "pink"),
        ),
        STYLE: (  # nothing at an edge, which the frame covers; no black, in which night changes little
            _twilight("star", "green", "white"),
            _twilight("circle", "red", "yellow"),
            _twilight("heart", "blue", "orange"),
            _twilight("square", "purple", "white", "small"),
            _twilight("triangle", "orange", "blue", "large"),
            _twilight("ring", "white", "red"),
            _twilight("cross", "pink", "green", "large"),
            _twilight("diamond", "yellow", "purple", "large"),
            _twilight("square", "green", "pink", shift=(0.03, 0.02)),
            _twilight("circle", "white", "blue", "small"),
            _twilight("star", "red", "pink", shift=(-0.02, 0.03)),
            _twilight(BOAT, "yellow", "blue"),
        ),
    },
    validation=(
        _boat("red", "yellow"),
        _boat("orange", "blue", "large"),
        _twilight("heart", "red", "white"),
        _twilight(BOAT, "blue", "orange"),
    ),
)
