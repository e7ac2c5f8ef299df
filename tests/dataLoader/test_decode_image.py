"""Everything that Pillow reads becomes upright 8-bit RGB; everything else gets a reason."""

import io
import struct
import zlib

from modules.util.decode_image import ImageError, decode_image

import numpy as np
import pytest
from PIL import Image, features


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (32, 16), "blue")
    upright.paste("red", (0, 0, 8, 8))
    # what a camera stores, so that the orientation turns it upright again
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, exif=exif))
    assert decoded.size == (32, 16)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_matter():
    assert decode_image(encode(Image.new("RGB", (9, 9), "red"), "JPEG", exif=b"Exif\0\0II*\0junk")).size == (9, 9)


def test_cmyk():
    red, green, blue = pixel(decode_image(encode(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG", quality=100)))
    assert red > 240 and green < 15 and blue < 15


def test_palette_with_transparency():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encode(image, transparency=0))
    assert pixel(decoded) == (255, 255, 255) and pixel(decoded, 1) == (0, 0, 255)
    assert pixel(decode_image(encode(image))) == (255, 0, 0)


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (65535, 255), (32896, 128), (257, 1)])
def test_16_bit_grey_is_scaled(level, expected):
    values = np.full((8, 8), level, dtype=np.uint16)
    assert pixel(decode_image(encode(Image.fromarray(values)))) == (expected,) * 3
    assert pixel(decode_image(encode(Image.fromarray(values), "TIFF"))) == (expected,) * 3
    assert pixel(decode_image(encode(Image.fromarray(values.astype(np.int32)), "TIFF"))) == (expected,) * 3


@pytest.mark.parametrize(("level", "expected"), [(0.5, 128), (200.0, 200)])
def test_floating_point(level, expected):
    assert pixel(decode_image(encode(Image.fromarray(np.full((8, 8), level, np.float32)), "TIFF"))) == (expected,) * 3


@pytest.mark.parametrize("level", [1e6, -1.0, float("nan")])
def test_unknown_ranges_are_refused(level):
    with pytest.raises(ImageError, match="range|finite"):
        decode_image(encode(Image.fromarray(np.full((8, 8), level, np.float32)), "TIFF"))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 127), (128, 128, 128)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (10, 255), (10, 10, 10)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_alpha_lies_over_white(mode, colour, expected):
    assert pixel(decode_image(encode(Image.new(mode, (8, 8), colour)))) == expected


def test_transparent_colour_of_an_rgb_file():
    assert pixel(decode_image(encode(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3)))) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixel(decode_image(data)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "TGA", "JPEG2000", "WEBP", "AVIF"])
def test_other_formats(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert decode_image(encode(Image.new("RGB", (24, 16), "red"), kind)).size == (24, 16)


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 60000 x 60000 pixels."""
    data = bytearray(encode(Image.new("RGB", (8, 8))))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


JPEG = encode(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")
PNG = encode(Image.effect_noise((64, 64), 80).convert("RGB"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text\n" * 20, "no image that Pillow knows"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "damaged"),
        (PNG[:30], "no image|damaged"),
        (PNG[:60] + bytes(100) + PNG[160:], "damaged"),
        (bomb(), "megapixels"),
    ],
    ids=["empty", "text", "short-jpeg", "short-png", "header-only", "overwritten", "bomb"],
)
def test_bad_files_have_a_reason(data, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
