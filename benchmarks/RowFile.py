import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules.util.atomic_file import write_bytes
from modules.util.UserError import UserError


class RowFile:
    """A file of JSON lines that grows row by row, so that a measurement goes on where it stopped.

    The first line says how it was made.

    Args:
        path: of the file; made with the first line if it is not there.
        head: the first line of a new file.
        required: what the first line of any file must say.
        take: gets each row of the file, and each that is appended; ValueError, KeyError or TypeError for one that is
            no row.

    Attributes:
        head: the first line.

    Raises:
        UserError: the file is no such file.
    """

    def __init__(
        self, path: Path, head: Mapping[str, Any] | None, required: Mapping[str, Any], take: Callable[[Any], None]
    ) -> None:
        self.path, self._take = path, take
        if not path.exists():
            self.head = {**(head or {}), **required}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, (json.dumps(self.head) + "\n").encode())
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            self.head, *rows = (json.loads(line) for line in lines if line.strip())
            for name, value in required.items():
                if self.head.get(name) != value:
                    raise ValueError(f"its first line says {name} {self.head.get(name)!r}, expected {value!r}")
            for row in rows:
                take(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: is no file of this measurement, was measured with other laws of steps, or its last line was "
                f"cut off ({error}). Mend the line, or name another file."
            ) from error

    def append(self, row: Any) -> None:
        """Takes a row and writes it at once."""
        self._take(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
