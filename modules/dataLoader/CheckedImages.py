import contextlib
import json
import os
import threading
from pathlib import Path

from modules.dataLoader.decode_image import decode_image
from modules.dataLoader.TensorCache import cache_error

import PIL

FILE_NAME = "checked_images.json"


class CheckedImages:
    """Remembers which image contents were decoded without error, so that the next check need not do it again.

    Entries are keyed by the content's hash and hold for one version of Pillow. A damaged list costs only time.

    Args:
        directory: the cache folder; None remembers nothing.
    """

    def __init__(self, directory: str | Path | None) -> None:
        self._path = Path(directory) / FILE_NAME if directory is not None else None
        self._known: dict[str, tuple[int, int]] = {}
        self._new = False
        self._lock = threading.Lock()
        try:
            data = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
            if data.get("pillow") == PIL.__version__:
                self._known = {str(key): (int(size[0]), int(size[1])) for key, size in data["images"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            self._known = {}

    def size(self, sha256: str, data: bytes) -> tuple[int, int]:
        """Width and height of an image, upright, in pixels.

        Args:
            sha256: hash of `data`.
            data: the file's bytes.

        Raises:
            ImageError: if it cannot be decoded.
        """
        known = self._known.get(sha256)
        if known is None:
            known = decode_image(data).size
            with self._lock:
                self._known[sha256] = known
                self._new = True
        return known

    def save(self) -> None:
        """Writes the list in one step, if there is anything new.

        Raises:
            UserError: if the cache folder cannot be written, or the disk is full.
        """
        if self._path is None or not self._new:
            return
        temporary = self._path.with_name(f".{FILE_NAME}.{os.getpid()}.tmp")
        data = {"pillow": PIL.__version__, "images": {key: list(size) for key, size in sorted(self._known.items())}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(data), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise cache_error(self._path.parent, error) from None
