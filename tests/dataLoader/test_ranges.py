"""Pictures of more than 8 bits: which value is white, and what is said where nobody knows."""

import io
import json

from modules.util.decode_image import ImageError, decode_with_range

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

RAMP = np.linspace(0, 1, 64)[None, :] * np.ones((64, 1))


def encode(values: np.ndarray, kind: str = "TIFF", tags: dict | None = None) -> bytes:
    buffer, directory = io.BytesIO(), ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        directory[tag] = value
    Image.fromarray(values).save(buffer, kind, **({"tiffinfo": directory} if tags else {}))
    return buffer.getvalue()


def levels(largest: float, dtype=np.uint16) -> np.ndarray:
    return (RAMP * largest).astype(dtype)


@pytest.mark.parametrize(
    ("largest", "dtype", "tag"),
    [
        (4095, np.uint16, 341),
        (4095, np.uint16, 281),
        (4000, np.uint16, 341),
        (255, np.int32, 281),
        (1_000_000, np.int32, 341),
    ],
)
def test_the_file_says_what_is_white(largest, dtype, tag):
    decoded = decode_with_range(encode(levels(largest, dtype), tags={tag: largest}))
    assert (decoded.full, decoded.dark) == (largest, None)
    assert decoded.image.getpixel((63, 0)) == (255, 255, 255)
    assert abs(decoded.image.getpixel((32, 0))[0] - 255 * 32 / 63) <= 1


@pytest.mark.parametrize(("largest", "share"), [(4095, 4095 / 65535), (255, 255 / 65535), (0, 0.0)])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_far_below_the_range_that_is_guessed(largest, share, kind):
    decoded = decode_with_range(encode(levels(largest), kind))
    assert decoded.full is None and decoded.dark == pytest.approx(share)
    if kind == "TIFF":
        assert decode_with_range(encode(levels(largest, np.int32))).dark == pytest.approx(share)


@pytest.mark.parametrize(
    "values", [levels(65535), levels(9000), (RAMP * 255).astype(np.uint8), (RAMP * 9).astype(np.uint8)]
)
def test_usual_pictures_are_as_they_were(values):
    decoded = decode_with_range(encode(values))
    assert (decoded.full, decoded.dark) == (None, None)


def test_a_tag_that_says_the_usual_or_less_than_there_is():
    assert decode_with_range(encode(levels(4095), tags={341: 65535})).dark is None, "it is meant to be dark"
    wrong = decode_with_range(encode(levels(60000), tags={341: 100}))
    assert (wrong.full, wrong.dark) == (None, None) and wrong.image.getpixel((63, 0))[0] == 233
    with pytest.raises(ImageError, match="SMaxSampleValue"):
        decode_with_range(encode(levels(1_000_000, np.int32)))


def test_floating_point():
    assert decode_with_range(encode((RAMP * 1.3).astype(np.float32))).dark == pytest.approx(1.3 / 255)
    assert decode_with_range(encode(RAMP.astype(np.float32))).dark is None
    # what a file says of numbers from 0 to 1 is their own brightest one
    assert decode_with_range(encode((RAMP * 0.7).astype(np.float32), tags={341: 0.7})).full is None
    assert decode_with_range(encode((RAMP * 4095).astype(np.float32), tags={341: 4095.0})).full == 4095


def colour_png(largest: int) -> bytes:
    """16 bits a channel, which Pillow reads and does not write."""
    import struct
    import zlib

    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in levels(largest))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_colours_of_16_bits():
    assert decode_with_range(colour_png(4095)).dark == pytest.approx(15 / 255)
    assert decode_with_range(colour_png(65535)).dark is None


def test_dark_pictures_are_named_also_when_they_are_known(dataset):
    (dataset.folder / "twelve.tif").write_bytes(encode(levels(4095)))
    (dataset.folder / "said.tif").write_bytes(encode(levels(4095), tags={341: 4095}))
    (dataset.folder / "sixteen.png").write_bytes(encode(levels(65535), "PNG"))
    concept = dataset.concept(text={"prompt_source": "filename"})
    first = dataset.check([concept])
    dark, said = dataset.warnings
    assert "in 1 picture of more than 8 bits" in dark and "twelve.tif (0.062 of it)" in dark
    assert "said.tif (4095)" in said
    assert {image.name: image.full for image in first.images} == {
        "said.tif": 4095,
        "sixteen.png": None,
        "twelve.tif": None,
    }
    kept = json.loads((dataset.root / "cache" / "checked_images.json").read_text())["images"]
    assert sorted(map(len, kept.values())) == [2, 4, 4]
    assert dataset.check([concept]) == first


def test_masks_that_are_black_everywhere(dataset):
    for stem in "abc":
        dataset.add(f"{stem}.png")
    (dataset.folder / "a-masklabel.tif").write_bytes(encode(levels(4095)))
    # classes instead of greys
    Image.fromarray((RAMP > 0.5).astype(np.uint8)).save(dataset.folder / "b-masklabel.png")
    Image.fromarray(((RAMP > 0.5) * 255).astype(np.uint8)).save(dataset.folder / "c-masklabel.png")
    for _ in range(2):
        dataset.warnings.clear()
        dataset.check(masked_training=True)
        (line,) = [line for line in dataset.warnings if "nearly black everywhere" in line]
        assert "2 masks" in line and "a-masklabel.tif (0.062 of white), b-masklabel.png (0.0039 of white)" in line


def test_only_keys_of_pictures_whose_file_says_it_change(dataset):
    (dataset.folder / "said.tif").write_bytes(encode(levels(4095), tags={341: 4095}))
    (dataset.folder / "said.txt").write_text("x")
    dataset.add("usual.png")
    source = dataset.prepare().source
    keys = {image.name: source.pixels_key(index, 0, "vae") for index, image in enumerate(source.images)}
    for index, image in enumerate(source.images):
        object.__setattr__(image, "full", None)
        assert (source.pixels_key(index, 0, "vae") == keys[image.name]) == (image.name == "usual.png")
