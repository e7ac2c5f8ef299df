import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from modules.dataLoader.TensorCache import cache_error
from modules.util.config.whole_file import replacing
from modules.util.decode_image import DARK, decode_with_range

import PIL

FILE_NAME = "checked_images.json"
CHECK = 2
"""To be raised when the check finds more in an image than before."""


@dataclass(frozen=True)
class ImageFacts:
    """What the check knows of an image's content.

    Attributes:
        width, height: upright, in pixels.
        full, dark: see `Decoded`.
    """

    width: int
    height: int
    full: float | None = None
    dark: float | None = None


class CheckedImages:
    """Remembers which image contents were decoded without error, so that the next check need not do it again.

    Entries are keyed by the content's hash and hold for one version of Pillow. A damaged list costs only time.

    Args:
        directory: the cache folder; None remembers nothing.
    """

    def __init__(self, directory: str | Path | None) -> None:
        self._path = Path(directory) / FILE_NAME if directory is not None else None
        self._known: dict[str, ImageFacts] = {}
        self._new = False
        self._lock = threading.Lock()
        try:
            data = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
            if data.get("pillow") == PIL.__version__ and data.get("check") == CHECK:
                self._known = {str(key): _read_facts(entry) for key, entry in data["images"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            self._known = {}

    def facts(self, sha256: str, data: bytes, mask: bool = False) -> ImageFacts:
        """What there is to know of an image.

        Args:
            sha256: hash of `data`.
            data: the file's bytes.
            mask: it is one; `dark` then also tells of one with 8 bits.

        Raises:
            ImageError: if it cannot be decoded.
        """
        key = f"mask {sha256}" if mask else sha256
        known = self._known.get(key)
        if known is None:
            decoded = decode_with_range(data)
            dark = decoded.dark
            if mask and dark is None:
                brightest = decoded.image.convert("L").getextrema()[1] / 255
                dark = brightest if brightest < DARK else None
            known = ImageFacts(*decoded.image.size, decoded.full, dark)
            with self._lock:
                self._known[key] = known
                self._new = True
        return known

    def save(self) -> None:
        """Writes the list in one step, if there is anything new.

        Raises:
            UserError: if the cache folder cannot be written, or the disk is full.
        """
        if self._path is None or not self._new:
            return
        images = {key: _written_facts(facts) for key, facts in sorted(self._known.items())}
        data = {"pillow": PIL.__version__, "check": CHECK, "images": images}
        try:
            with replacing(self._path, f".{os.getpid()}.tmp", durable=False) as file:
                file.write(json.dumps(data).encode())
        except OSError as error:
            raise cache_error(self._path.parent, error) from None


def _written_facts(facts: ImageFacts) -> list:
    usual = facts.full is None and facts.dark is None
    return [facts.width, facts.height, *(() if usual else (facts.full, facts.dark))]


def _read_facts(entry: list) -> ImageFacts:
    width, height, *ranges = entry
    full, dark = (None if value is None else float(value) for value in ranges or (None, None))
    return ImageFacts(int(width), int(height), full, dark)
