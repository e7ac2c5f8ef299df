import hashlib
import json
import os
from pathlib import Path

from modules.dataLoader.captions import LARGEST_CAPTION, LARGEST_LIST
from modules.util.atomic_file import write_failure
from modules.util.config.file_kind import special_kind
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

NAME = ".captions_by_model.jsonl"
"""Hidden, so that nothing that reads a folder of images takes it for a caption."""


class WrittenCaptions:
    """Which caption files of one folder a model has written and nobody has changed since, by the hashes of their bytes.

    They stand in a hidden file of the folder, a line of JSON for each; the last one of a name counts. A lost or damaged
    line makes the caption one of a person, which is never replaced.

    Args:
        folder: that the captions lie in, not those below it.

    Raises:
        UserError: the hidden file can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._known: dict[str, str] = {}
        try:
            data = read_regular(self._path, LARGEST_LIST)
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise UserError(
                f"{self._path} can't be read: {error.strerror or error}. It lists the captions that a model has "
                "written. Without it, they count as yours: remove it if that is right."
            ) from error
        # a process was killed in the middle of a line
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                self._known[str(entry["file"])] = str(entry["sha256"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def has(self, path: Path) -> bool:
        """Whether a caption file of this folder is as a model wrote it."""
        if path.name not in self._known:
            return False
        try:
            return self.wrote(path.name, read_regular(path, LARGEST_CAPTION))
        except OSError:
            return False

    def wrote(self, name: str, data: bytes) -> bool:
        """Whether a model wrote these bytes into the caption file of this name."""
        return name in self._known and hashlib.sha256(data).hexdigest() == self._known[name]

    def note(self, name: str, data: bytes) -> None:
        """Remembers what is about to be written; before it is, so that a kill in between leaves no unknown caption.

        Raises:
            UserError: the hidden file can't be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        line = json.dumps({"file": name, "sha256": digest}, ensure_ascii=False) + "\n"
        try:
            if kind := special_kind(self._path):
                raise UserError(f"Cannot write {self._path}: it is {kind}, expected a file.")
            with open(self._path, "ab") as file:
                file.write((b"\n" if self._torn else b"") + line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_failure(self._path, error) from error
        self._torn = False
        self._known[name] = digest
