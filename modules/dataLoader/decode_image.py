"""From a file's bytes to an upright 8-bit RGB image."""

import io

import numpy as np
from PIL import Image, ImageOps

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
LARGEST_PIXELS = 178_956_970
"""Larger images are refused: most likely a file made to fill the memory. It is Pillow's own limit."""


class ImageError(ValueError):
    """A file that is no usable image. The text is the reason, for a person, without the path."""


def decode_image(data: bytes) -> Image.Image:
    """Decodes everything that Pillow reads, all of it, so that a truncated file is found.

    The EXIF orientation is applied. Transparency is laid over white, 16-bit greys are scaled to 8 bit, of an
    animation the first frame is taken. Colour profiles are not applied.

    Raises:
        ImageError: with the reason.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ImageError(
                    f"{image.width}x{image.height} px is more than {LARGEST_PIXELS / 1e6:.0f} megapixels; scale it down"
                )
            image.load()
            return _to_rgb(_upright(image))
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales grey values of 16 bit (modes I and I;16) or floating point to 8 bit."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("it holds values that are not finite")
    if image.mode == "F":
        full = 1.0 if high <= 1 else 255.0
    else:
        full = 65535.0
    if low < 0 or high > full:
        raise ImageError(f"its values run from {low:g} to {high:g}, which is no range we know; save it with 8 bit")
    return Image.fromarray(np.floor(values * (255 / full) + 0.5).astype(np.uint8))
