from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modules.dataLoader.captions import LARGEST_CAPTION
from modules.util.regular_file import read_regular
from modules.util.texts import tr
from modules.util.UserError import UserError

BOM = "\ufeff".encode()


class CaptionChanged(UserError):
    """Another program has changed a caption file since it was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(tr("{path} was changed by another program meanwhile. It was not written.", path=path))


@dataclass(frozen=True)
class CaptionText:
    """What stands in a caption file, to the byte. What is written over it must be what was read.

    Attributes:
        path: of the file.
        data: its bytes; None: there is no file.
        text: what a person reads of it: lines end with a line feed, blanks at the end are left out.
        trouble: why it can't be edited, empty if it can.
    """

    path: Path
    data: bytes | None = None
    text: str = ""
    trouble: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file, if there is one."""
        try:
            data = read_regular(path, LARGEST_CAPTION)
        except FileNotFoundError:
            return cls(path)
        except OSError as error:
            return cls(path, trouble=tr("{path} can't be read: {why}.", path=path, why=error.strerror or error))
        return cls.of(path, data)

    @classmethod
    def of(cls, path: Path, data: bytes | None) -> Self:
        """A file with these bytes."""
        if data is None:
            return cls(path)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            trouble = tr(
                "{path} is not UTF-8 text (byte {byte}). Save it as UTF-8 in a text editor.",
                path=path,
                byte=error.start,
            )
            return cls(path, data, trouble=trouble)
        if "\0" in text:
            return cls(path, data, trouble=tr("{path} is not text: it holds zero bytes.", path=path))
        return cls(path, data, text.replace("\r\n", "\n").replace("\r", "\n").rstrip())

    def with_text(self, text: str) -> bytes | None:
        """The bytes of the file with another text: mark, line ends and what follows the text stay as they are.

        Nothing where there is neither a file nor a text.
        """
        text = text.rstrip()
        if text == self.text:
            return self.data
        if self.data is None:
            return f"{text}\n".encode()
        old = self.data.decode("utf-8-sig")
        tail = old[len(old.rstrip()) :] if old.strip() else "\n"
        ends = next((end for end in ("\r\n", "\n", "\r") if end in old), "\n")
        mark = BOM if self.data.startswith(BOM) else b""
        return mark + (text.replace("\n", ends) + tail).encode()

    def put(self, data: bytes | None) -> Self:
        """Replaces the file by these bytes, or removes it; returns what stands there now.

        Raises:
            CaptionChanged: it is no longer what was read.
            UserError: it can't be written.
        """
        # it loads torch, which takes seconds
        from modules.util.atomic_file import create_bytes, write_bytes, write_failure

        if data == self.data:
            return self
        if self.data is None:
            assert data is not None
            try:
                create_bytes(self.path, data)
            except FileExistsError:
                raise CaptionChanged(self.path) from None
        elif type(self).read(self.path).data != self.data:
            raise CaptionChanged(self.path)
        elif data is None:
            try:
                self.path.unlink()
            except OSError as error:
                raise write_failure(self.path, error) from None
        else:
            write_bytes(self.path, data)
        return type(self).of(self.path, data)
