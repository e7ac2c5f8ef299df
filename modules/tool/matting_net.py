"""Networks that part a picture's subject from its background, as ONNX files: U²-Net, IS-Net, BiRefNet, RMBG, MODNet.

b = 1 picture, h and w its sides in the network's size.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.tool.onnx_model import open_model, unusable

import numpy as np
from PIL import Image

SETTINGS_FILE = "preprocessor_config.json"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ZERO, HALF, ONE = (0.0,) * 3, (0.5,) * 3, (1.0,) * 3
# start of a file's name -> mean and deviation of the pixels that it was trained on; the longer ones first
OF_FILES = {
    "isnetis": (ZERO, ONE), "isnet-anime": (ZERO, ONE), "isnet": (HALF, ONE), "rmbg": (HALF, ONE),
    "modnet": (HALF, HALF),
}  # fmt: skip
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# values of a network may miss 0 and 1 by rounding
ROUNDING = 0.01


@dataclass(frozen=True)
class Pixels:
    """How a network wants pixels: (value · scale − mean) / deviation.

    Attributes:
        scale: of values from 0 to 255.
        mean, deviation: of each channel.
        size: (width, height), where its settings give one.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET[0]
    deviation: tuple[float, ...] = IMAGENET[1]
    size: tuple[int, int] | None = None


class MattingNet:
    """Finds the subject of a picture. It computes on the CPU.

    The picture is scaled to the network's size, whatever its shape, and given as RGB `[b, 3, h, w]`. The first output
    `[b, 1, h, w]` is the mask; one with values outside of 0 to 1 holds logits.

    Args:
        path: of the ONNX file.
        settings: its `preprocessor_config.json`, None if there is none; then the name of the file decides, and pixels
            are those of ImageNet if it says nothing.

    Raises:
        UserError: onnxruntime is not installed, or a file can't be used.
    """

    def __init__(self, path: Path, settings: Path | None) -> None:
        self._path = path
        self.pixels = read_pixels(settings) if settings is not None else of_name(path.name)
        self.session = open_model(path)
        image = self.session.get_inputs()[0]
        shape = image.shape
        if len(self.session.get_inputs()) != 1 or len(shape) != 4 or shape[1] != 3 or image.type not in TYPES:
            takes = ", ".join(f"{one.type} {one.shape}" for one in self.session.get_inputs())
            raise unusable(path, f"it takes {takes}, expected one image [1, 3, height, width]")
        self._name, self._type = image.name, TYPES[image.type]
        sides = tuple(side for side in shape[:1:-1] if isinstance(side, int))
        size = sides if len(sides) == 2 else self.pixels.size
        if size is None:
            raise unusable(path, f"it takes pictures of any size, and {SETTINGS_FILE} beside it gives none")
        self._size = size

    def segment(self, image: Image.Image) -> np.ndarray:
        """float32 `[h, w]` in the network's size, from 0 to 1: how surely each pixel is part of the subject."""
        answer = self._run(as_input(image, self._size, self.pixels).astype(self._type))
        values = np.asarray(answer, np.float32)
        if values.ndim < 2 or values.size != values.shape[-1] * values.shape[-2]:
            raise unusable(self._path, f"it answers with {list(values.shape)}, expected [1, 1, height, width]")
        values = values.reshape(values.shape[-2:])
        if not np.isfinite(values).all():
            raise unusable(self._path, "it answers with values that are no numbers")
        if values.min() < -ROUNDING or values.max() > 1 + ROUNDING:
            values = 1 / (1 + np.exp(-np.clip(values, -60, 60)))
        return values.clip(0, 1)

    def _run(self, pixels: np.ndarray) -> Any:
        try:
            return self.session.run(None, {self._name: pixels})[0]
        # see `open_model`
        except Exception as error:
            raise unusable(self._path, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


def as_input(image: Image.Image, size: tuple[int, int], pixels: Pixels) -> np.ndarray:
    """An 8-bit RGB image as a network sees it: float32 `[1, 3, height, width]` of (width, height)."""
    values = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) * pixels.scale
    values = (values - np.array(pixels.mean, np.float32)) / np.array(pixels.deviation, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def of_name(name: str) -> Pixels:
    """What a network of this file name wants."""
    for start, (mean, deviation) in OF_FILES.items():
        if name.lower().startswith(start):
            return Pixels(mean=mean, deviation=deviation)
    return Pixels()


def read_pixels(path: Path) -> Pixels:
    """What a `preprocessor_config.json` says. Raises UserError if it can't be used."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        scale = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
        mean, deviation = ZERO, ONE
        if said.get("do_normalize", True):
            mean, deviation = (_channels(said[key]) for key in ("image_mean", "image_std"))
        if not all(deviation):
            raise ValueError("image_std holds 0")
        return Pixels(scale, mean, deviation, _size(said.get("size")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable(path, f"expected image_mean and image_std ({error})") from error


def _channels(said: Any) -> tuple[float, ...]:
    found = tuple(float(one) for one in said)
    if len(found) != 3:
        raise ValueError(f"found {len(found)} channels, expected 3")
    return found


def _size(said: Any) -> tuple[int, int] | None:
    if isinstance(said, dict) and said.keys() == {"shortest_edge"}:
        said = said["shortest_edge"]
    if isinstance(said, dict) and {"width", "height"} <= said.keys():
        return int(said["width"]), int(said["height"])
    return (int(said), int(said)) if isinstance(said, int) else None
