"""Captioned scenes that the tiny base model learns: shapes x colours x backgrounds x sizes x positions x counts.

Everything is drawn with Pillow from a `Scene`, a plain description. Drawing is exact and repeatable: the same scene
gives the same picture, whatever machine draws it.
"""

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

SUPERSAMPLING = 4

# Far apart in RGB, so that a colour can be told from the others by its nearest neighbour.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38),
    "orange": (245, 135, 25),
    "yellow": (245, 220, 60),
    "green": (45, 160, 70),
    "blue": (45, 85, 215),
    "purple": (125, 50, 170),
    "pink": (245, 140, 190),
    "white": (248, 248, 248),
    "black": (22, 22, 22),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {**COLORS, "gray": (128, 128, 128), "brown": (120, 75, 40)}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
# Radius of the circle around a shape, as a fraction of the picture's shorter side.
SIZES: dict[str, float] = {"small": 0.17, "medium": 0.25, "large": 0.36}
POSITIONS: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
}
COUNTS = {1: "one", 2: "two", 3: "three"}
# Pairs that a person would hardly tell apart at 64 pixels.
_TOO_CLOSE = {
    frozenset(pair)
    for pair in (
        ("orange", "yellow"),
        ("red", "orange"),
        ("red", "brown"),
        ("purple", "blue"),
        ("black", "brown"),
        ("orange", "brown"),
        ("red", "purple"),
        ("green", "gray"),
        ("purple", "gray"),
        ("purple", "brown"),
        ("pink", "gray"),
        ("blue", "gray"),
        ("green", "brown"),
    )
}


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `shape`, `color`, `background`, `size` and `position` are keys of the tables above."""

    shape: str
    color: str
    background: str
    size: str = "medium"
    position: str = "center"
    count: int = 1


def contrasting(color: str, background: str) -> bool:
    """Whether a shape of `color` can be seen on `background`."""
    return color != background and frozenset((color, background)) not in _TOO_CLOSE


def random_scene(rng: random.Random) -> Scene:
    """A scene drawn uniformly over shapes and contrasting colour pairs; a third of all scenes hold several objects."""
    color, background = rng.choice(list(COLORS)), rng.choice(list(BACKGROUNDS))
    while not contrasting(color, background):
        color, background = rng.choice(list(COLORS)), rng.choice(list(BACKGROUNDS))
    shape, count = rng.choice(SHAPES), rng.choices((1, 2, 3), (0.7, 0.18, 0.12))[0]
    scene = Scene(shape, color, background, count=count)
    if count > 1:
        return replace(scene, size="small")
    size = rng.choice(list(SIZES))
    position = "center" if size == "large" else rng.choice(list(POSITIONS))
    return replace(scene, size=size, position=position)


def with_article(words: str) -> str:
    """The words behind "a" or "an"."""
    return f"{'an' if words[0] == 'o' else 'a'} {words}"


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption in one of several phrasings; what goes without saying (medium, center) is often left out."""
    size = "" if scene.count > 1 or (scene.size == "medium" and rng.random() < 0.7) else f"{scene.size} "
    noun = f"{size}{scene.color} {scene.shape}"
    if scene.count > 1:
        subject = f"{COUNTS[scene.count]} {noun}{'es' if scene.shape == 'cross' else 's'}"
    else:
        subject = with_article(noun)
    where = ""
    if scene.count == 1 and not (scene.position == "center" and rng.random() < 0.7):
        where = " in the center" if scene.position == "center" else f" at the {scene.position}"
        if scene.position in ("left", "right"):
            where = f" on the {scene.position}"
    phrasing = rng.random()
    if phrasing < 0.6:
        return f"{subject}{where} on {with_article(scene.background)} background"
    if phrasing < 0.8:
        return f"{subject}{where}, {scene.background} background"
    if phrasing < 0.93:
        return f"{scene.background} background, {subject}{where}"
    return f"{subject}{where}"


def _polygon(points: list[tuple[float, float]], cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    return [(cx + r * x, cy + r * y) for x, y in points]


def _regular(corners: int, start: float) -> list[tuple[float, float]]:
    return [
        (math.cos(start + 2 * math.pi * k / corners), math.sin(start + 2 * math.pi * k / corners))
        for k in range(corners)
    ]


def _star() -> list[tuple[float, float]]:
    outer, inner = _regular(5, -math.pi / 2), _regular(5, -math.pi / 2 + math.pi / 5)
    return [point for o, i in zip(outer, inner, strict=True) for point in (o, (0.42 * i[0], 0.42 * i[1]))]


def _heart() -> list[tuple[float, float]]:
    points = []
    for k in range(48):
        t = 2 * math.pi * k / 48
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3 * 16 / 17, -y / 17))
    return points


_CROSS = [
    (-0.32, -1),
    (0.32, -1),
    (0.32, -0.32),
    (1, -0.32),
    (1, 0.32),
    (0.32, 0.32),
    (0.32, 1),
    (-0.32, 1),
    (-0.32, 0.32),
    (-1, 0.32),
    (-1, -0.32),
    (-0.32, -0.32),
]
_OUTLINES = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
    "star": _star(),
    "heart": _heart(),
    "cross": [(0.9 * x, 0.9 * y) for x, y in _CROSS],
}


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    center: tuple[float, float],
    radius: float,
    fill: tuple[int, int, int],
    background: tuple[int, int, int],
) -> None:
    """Draws one shape of `radius` pixels around `center`; a ring shows `background` through its hole."""
    cx, cy = center
    if shape in ("circle", "ring"):
        r = 0.92 * radius
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
        if shape == "ring":
            r *= 0.52
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=background)
        return
    draw.polygon(_polygon(_OUTLINES[shape], cx, cy, radius), fill=fill)


def object_centers(scene: Scene) -> list[tuple[float, float]]:
    """Where the objects stand, as fractions of width and height."""
    if scene.count == 1:
        return [POSITIONS[scene.position]]
    if scene.count == 2:
        return [(0.28, 0.5), (0.72, 0.5)]
    return [(0.5, 0.27), (0.26, 0.7), (0.74, 0.7)]


def draw_scene(scene: Scene, width: int = 64, height: int = 64, rng: random.Random | None = None) -> Image.Image:
    """The picture of a scene, RGB, antialiased. With `rng` place, size and colours vary a little, as in real data."""

    def vary(color: tuple[int, int, int]) -> tuple[int, int, int]:
        return color if rng is None else tuple(max(0, min(255, c + rng.randint(-7, 7))) for c in color)

    s = SUPERSAMPLING
    fill, background = vary(COLORS[scene.color]), vary(BACKGROUNDS[scene.background])
    image = Image.new("RGB", (width * s, height * s), background)
    draw = ImageDraw.Draw(image)
    for fx, fy in object_centers(scene):
        radius = SIZES[scene.size] * min(width, height)
        cx, cy = fx * width, fy * height
        if rng is not None:
            radius *= rng.uniform(0.93, 1.07)
            cx, cy = cx + rng.uniform(-1.2, 1.2), cy + rng.uniform(-1.2, 1.2)
        draw_shape(draw, scene.shape, (cx * s, cy * s), radius * s, fill, background)
    return image.resize((width, height), Image.Resampling.BOX)


def random_doodle(rng: random.Random, width: int = 64, height: int = 64) -> Image.Image:
    """An uncaptioned picture of stripes, dots, gradients, outlines and scribbles in any colours.

    The autoencoder sees these beside the scenes, so that it can later show styles and objects that no scene has.
    """

    def color() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    s = SUPERSAMPLING
    w, h = width * s, height * s
    image = Image.new("RGB", (w, h), color())
    draw = ImageDraw.Draw(image)
    kind = rng.randrange(4)
    if kind == 0:
        pitch, stripe, slope = rng.uniform(5, 16) * s, color(), rng.uniform(-1, 1)
        for k in range(-int(h / pitch) - 1, int((w + h) / pitch) + 2):
            draw.line((k * pitch, 0, k * pitch + slope * h, h), fill=stripe, width=int(pitch * rng.uniform(0.3, 0.6)))
    elif kind == 1:
        pitch, dot = rng.uniform(5, 14) * s, color()
        r = pitch * rng.uniform(0.18, 0.4)
        for i in range(int(w / pitch) + 2):
            for j in range(int(h / pitch) + 2):
                x, y = (i + 0.5 * (j % 2)) * pitch, j * pitch
                draw.ellipse((x - r, y - r, x + r, y + r), fill=dot)
    elif kind == 2:
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((w, h))
        image = Image.composite(image, Image.new("RGB", (w, h), color()), ramp)
        draw = ImageDraw.Draw(image)
    for _ in range(rng.randrange(1, 7)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.06, 0.4) * w
        what, line = rng.randrange(4), int(rng.uniform(1.0, 4.0) * s)
        if what == 0:
            draw.ellipse((x - r, y - r * rng.uniform(0.4, 1), x + r, y + r), fill=color(), outline=color(), width=line)
        elif what == 1:
            corners = _polygon(_regular(rng.randrange(3, 8), rng.uniform(0, 6.28)), x, y, r)
            draw.polygon(corners, fill=color(), outline=color(), width=line)
        elif what == 2:
            draw.line(
                [(rng.uniform(0, w), rng.uniform(0, h)) for _ in range(rng.randrange(2, 5))],
                fill=color(),
                width=line,
                joint="curve",
            )
        else:
            draw_shape(draw, rng.choice(SHAPES), (x, y), r, color(), color())
    return image.resize((width, height), Image.Resampling.BOX)
