"""From a file's bytes to an upright 8-bit RGB image."""

import io
import math
from dataclasses import dataclass

from modules.util.png_notes import without_notes

import numpy as np
from PIL import Image, ImageOps

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
LARGEST_PIXELS = 178_956_970
"""Larger images are refused: most likely a file made to fill the memory. It is Pillow's own limit."""

LARGEST_FILE = 1 << 30
"""Bytes; an image of `LARGEST_PIXELS` with four channels of 8 bit has 0.7 GB without compression."""

PROGRAMS = ("EPS",)
"""Formats that are programs: Pillow lets another program run them, which may take for ever."""

DARK = 1 / 8
"""Where an image's range is a guess, its brightest value is expected to be at least this share of it."""

# largest value that a sample may have, and largest that one has; how many bits there are
TIFF_LARGEST, TIFF_BITS = (341, 281), 258


ASPECT_TOLERANCE = 0.02
"""Pictures of the same thing may differ in aspect by this share; programs round when they scale."""


class ImageError(ValueError):
    """A file that is no usable image. The text is the reason, for a person, without the path."""


@dataclass(frozen=True)
class Decoded:
    """An image, and what is known of the range of its values.

    Attributes:
        image: upright, 8-bit RGB.
        full: the value that became white, where the file itself says it and it is not what we would have guessed.
        dark: brightest value as a share of the guessed range, if it is less than `DARK`.
    """

    image: Image.Image
    full: float | None = None
    dark: float | None = None


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two pictures, each (width, height) in pixels, have the same aspect."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= ASPECT_TOLERANCE


def decode_image(data: bytes) -> Image.Image:
    """Decodes everything that Pillow reads, all of it, so that a truncated file is found.

    The EXIF orientation is applied. Transparency is laid over white, 16-bit greys are scaled to 8 bit, of an
    animation the first frame is taken. Colour profiles are not applied, and texts are not read.

    Raises:
        ImageError: with the reason.
    """
    return decode_with_range(data).image


def decode_with_range(data: bytes) -> Decoded:
    """`decode_image`, and what is known of the range of the file's values."""
    if not data:
        raise ImageError("the file is empty")
    try:
        return _decode(data)
    except ImageError:
        slim = without_notes(data)
        if slim is None:
            raise
    # Pillow refuses sound pixels for what is written beside them
    return _decode(slim)


def _decode(data: bytes) -> Decoded:
    try:
        Image.init()
        with Image.open(io.BytesIO(data), formats=[name for name in Image.ID if name not in PROGRAMS]) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ImageError(
                    f"{image.width}x{image.height} px is more than {LARGEST_PIXELS / 1e6:.0f} megapixels; scale it down"
                )
            deep, said = ";16" in str(getattr(image, "tile", "")), _said_range(image)
            image.load()
            return _to_rgb(_upright(image), deep, said)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("its content is no image that Pillow knows") from None
    except Image.DecompressionBombError:
        raise ImageError(f"it has more than {LARGEST_PIXELS / 1e6:.0f} megapixels; scale it down") from None
    except MemoryError:
        raise ImageError("it needs more memory than there is; scale it down") from None
    # Pillow's readers raise almost anything on damaged files: OSError, SyntaxError, struct.error, zlib.error …
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"damaged or unsupported: {text}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # broken EXIF data in a sound image: the pixels count
    except Exception:
        return image


def _said_range(image: Image.Image) -> float | None:
    """The largest value that a TIFF file says its samples may have; None if it says none."""
    tags = getattr(image, "tag_v2", None) or {}
    for tag in TIFF_LARGEST:
        value = tags.get(tag)
        try:
            largest = max(map(float, value)) if isinstance(value, tuple) else float(value)
        except (TypeError, ValueError, ZeroDivisionError):
            continue
        if math.isfinite(largest) and largest > 0:
            return largest
    bits = tags.get(TIFF_BITS)
    bits = bits[0] if isinstance(bits, tuple) and bits else bits
    return float(2**bits - 1) if isinstance(bits, int) and 8 < bits < 16 else None


def _to_rgb(image: Image.Image, deep: bool, said: float | None) -> Decoded:
    full = dark = None
    if image.mode.startswith("I") or image.mode == "F":
        image, full, dark = _to_8_bit(image, said)
    elif deep and said != 65535:
        # Pillow took the upper 8 of 16 bits
        bands = image.getextrema()
        bands = bands if isinstance(bands[0], tuple) else (bands,)
        brightest = max(high for _, high in bands[: 1 if len(bands) < 3 else 3]) / 255
        dark = brightest if brightest < DARK else None
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Decoded(image.convert("RGB"), full, dark)


def _to_8_bit(image: Image.Image, said: float | None) -> tuple[Image.Image, float | None, float | None]:
    """Scales grey values of 16 bit (modes I and I;16) or floating point to 8 bit; `full` and `dark` of `Decoded`."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("it holds values that are not finite")
    if image.mode == "F":
        guess = 1.0 if high <= 1 else 255.0
        # floating point has a usual range; what a file says of it is mostly its own brightest value
        said = said if high > guess else None
    else:
        guess = 65535.0
    known = said is not None and said != guess and high <= said
    full = said if known else guess
    if low < 0 or high > full:
        raise ImageError(
            f"its values run from {low:g} to {high:g}, which is no range we know; save it with 8 bit, or write the "
            "largest possible value into the TIFF tag SMaxSampleValue"
        )
    dark = high / full if not known and said != guess and high / full < DARK else None
    scaled = Image.fromarray(np.floor(values * (255 / full) + 0.5).astype(np.uint8))
    return scaled, full if known else None, dark
