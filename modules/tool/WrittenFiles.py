import hashlib
import json
import os
from pathlib import Path

from modules.dataLoader.captions import LARGEST_LIST
from modules.util.atomic_file import create_bytes, write_bytes, write_failure
from modules.util.config.file_kind import special_kind
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError


class WrittenFiles:
    """Which files of one folder a model has written and nobody has changed since, by the hashes of their bytes.

    They stand in a hidden file of the folder, a line of JSON for each; the last one of a name counts. A lost or damaged
    line makes the file one of a person, which is never replaced.

    Args:
        folder: that the files lie in, not those below it.

    Raises:
        UserError: the hidden file can't be read.
    """

    name = ""
    """Of the hidden file. Hidden, so that nothing that reads a folder of images takes it for something else."""

    what = "files"
    """They are, for people."""

    largest = 0
    """Bytes; a larger file is none of them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.name
        self._known: dict[str, str] = {}
        try:
            data = read_regular(self._path, LARGEST_LIST)
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise UserError(
                f"{self._path} can't be read: {error.strerror or error}. It lists the {self.what} that a model has "
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
        """Whether a file of this folder is as a model wrote it."""
        if path.name not in self._known:
            return False
        try:
            return self.wrote(path.name, read_regular(path, self.largest))
        except OSError:
            return False

    def wrote(self, name: str, data: bytes) -> bool:
        """Whether a model wrote these bytes into the file of this name."""
        return name in self._known and hashlib.sha256(data).hexdigest() == self._known[name]

    def note(self, name: str, data: bytes) -> None:
        """Remembers what is about to be written; before it is, so that a kill in between leaves no unknown file.

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


class WrittenByFolder:
    """`WrittenFiles` of each folder, read when it is first asked for.

    Args:
        kind: of files.
    """

    def __init__(self, kind: type[WrittenFiles]) -> None:
        self._kind = kind
        self._read: dict[Path, WrittenFiles] = {}

    def of(self, path: Path) -> WrittenFiles:
        """Of the folder in which a file lies."""
        if path.parent not in self._read:
            self._read[path.parent] = self._kind(path.parent)
        return self._read[path.parent]

    def write(self, path: Path, data: bytes, again: bool) -> bool:
        """Writes a file of a model; False if a file is there that is not one.

        Args:
            path: of the file.
            data: its content.
            again: whether one of a model was there.

        Raises:
            UserError: it can't be written.
        """
        book = self.of(path)
        if again:
            # a person may have changed it while the model worked
            if not book.has(path):
                return False
            book.note(path.name, data)
            write_bytes(path, data)
            return True
        if os.path.lexists(path):
            return False
        book.note(path.name, data)
        try:
            create_bytes(path, data)
        except FileExistsError:
            return False
        return True
