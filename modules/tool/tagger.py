"""Taggers in the layout of the WD taggers: `model.onnx`, and `selected_tags.csv` with the tag of each output."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from modules.tool.onnx_model import open_model, unusable
from modules.util.regular_file import read_regular

import numpy as np
from PIL import Image

MODEL_FILE, TAGS_FILE = "model.onnx", "selected_tags.csv"
# category of a tag -> whether it names a character; others are ratings
CATEGORIES = {"0": False, "4": True}
# as the authors recommend: a wrong name is worse than none
CHARACTER_THRESHOLD = 0.85
LARGEST_TAGS = 64 << 20
# tags without two letters or digits in a row are faces, as ^_^ or o_o
WORD = re.compile(r"[^\W_]{2}")


@dataclass(frozen=True)
class Tag:
    """One output: what is written for it, and whether it names a character; None if it is never written."""

    text: str
    character: bool | None


class Tagger:
    """Writes the tags of an image, the most probable first, separated by commas. Ratings are left out.

    The image is laid on a white square, scaled to the model's size and given as BGR from 0 to 255, `[1, h, w, 3]`;
    the model answers with probabilities `[1, tags]`.

    Args:
        folder: holds both files.
        threshold: probability from which a general tag is written; a character needs `CHARACTER_THRESHOLD` at least.

    Raises:
        UserError: onnxruntime is not installed, or the files can't be used.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        self.threshold = threshold
        self.tags = read_tags(folder / TAGS_FILE)
        self.session = open_model(folder / MODEL_FILE)
        image, answer = self.session.get_inputs()[0], self.session.get_outputs()[0]
        shape, count = image.shape, len(self.tags)
        if len(shape) != 4 or shape[3] != 3 or not all(isinstance(side, int) for side in shape[1:]):
            raise unusable(folder / MODEL_FILE, f"it takes {shape}, expected an image [1, height, width, 3]")
        if len(answer.shape) != 2 or answer.shape[1] != count:
            raise unusable(folder / MODEL_FILE, f"it answers with {answer.shape}, but {TAGS_FILE} has {count} tags")
        self._name, self._size = image.name, (shape[2], shape[1])

    def describe(self, image: Image.Image) -> str:
        """The tags of an 8-bit RGB image."""
        (answer,) = self.session.run(None, {self._name: as_input(image, self._size)})[:1]
        found = sorted(zip(answer[0].tolist(), self.tags, strict=True), key=lambda pair: -pair[0])
        return ", ".join(tag.text for probability, tag in found if probability >= self._least(tag))

    def _least(self, tag: Tag) -> float:
        if tag.character is None:
            return float("inf")
        return max(self.threshold, CHARACTER_THRESHOLD) if tag.character else self.threshold


def as_input(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An image as a tagger sees it: float32 `[1, height, width, 3]`, BGR, 0 to 255.

    Args:
        image: 8-bit RGB.
        size: (width, height).
    """
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray(pixels[None, :, :, ::-1])


def read_tags(path: Path) -> list[Tag]:
    """The tags of all outputs. Raises UserError if the file can't be used."""
    try:
        rows = list(csv.DictReader(read_regular(path, LARGEST_TAGS).decode("utf-8-sig").splitlines()))
        tags = [Tag(_written(row["name"]), CATEGORIES.get(row["category"])) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise unusable(path, f"expected a table with the columns name and category ({error})") from error
    if not tags:
        raise unusable(path, "it has no tags")
    return tags


def _written(name: str) -> str:
    return name.replace("_", " ") if WORD.search(name) else name
