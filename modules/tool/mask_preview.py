"""A sheet that shows pictures beside the same with their masks over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# longer side of a picture on the sheet, gap between pictures, height of its line of text
SIDE, GAP, LINE = 360, 8, 36
# readable also where a window shows the sheet at half its size
FONT = 26
PAPER, INK = (32, 32, 36), (225, 225, 225)
# what is not learnt is dark and reddish
SHADE, TINT = 0.4, (150, 20, 40)
# width over height that a sheet comes near to
ASPECT = 1.5


@dataclass(frozen=True)
class Shown:
    """A picture of the sheet.

    Attributes:
        text: below it.
        image: 8-bit RGB, of any size.
        over: the same with its mask over it.
    """

    text: str
    image: Image.Image
    over: Image.Image

    @classmethod
    def of(cls, text: str, image: Image.Image, mask: np.ndarray) -> "Shown":
        """Of a picture and its mask, uint8 `[h, w]` of the same size; it keeps small copies."""
        small = image.copy()
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        part = Image.fromarray(mask).resize(small.size, Image.Resampling.BOX)
        return cls(text, small, lay_over(small, part))


def lay_over(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Where the mask is white the picture is as it is; where it is black, dark and reddish."""
    grey = Image.merge("RGB", [image.convert("L")] * 3)
    dark = Image.blend(Image.new("RGB", image.size, TINT), grey, SHADE)
    return Image.composite(image, dark, mask)


def draw_sheet(shown: Sequence[Shown]) -> Image.Image:
    """The sheet: as many pairs in a row as make it about as wide as a screen."""
    wide, high = 2 * max(one.image.width for one in shown) + GAP, max(one.image.height for one in shown) + LINE
    columns = min(len(shown), max(1, round(math.sqrt(ASPECT * len(shown) * high / wide))))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    heights = [max(one.image.height for one in row) + LINE + GAP for row in rows]
    sheet = Image.new("RGB", (columns * (wide + GAP) + GAP, sum(heights) + GAP), PAPER)
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(FONT), GAP
    for row, height in zip(rows, heights, strict=True):
        for place, one in enumerate(row):
            left = GAP + place * (wide + GAP)
            sheet.paste(one.image, (left, top))
            sheet.paste(one.over, (left + one.image.width + GAP, top))
            draw.text((left, top + one.image.height + 2), _fitting(one.text, font, wide), INK, font)
        top += height
    return sheet


def _fitting(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """A text cut to so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
