"""What stands at a path, and which texts can be a part of a file's name."""

import errno
import os
import re
import stat
from pathlib import Path

_SEPARATORS = re.compile(r"[/\\\x00-\x1f\x7f]")
_WINDOWS = re.compile(r'[<>:"|?*]')
# what is no file, in words
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def special_kind(path: str | os.PathLike[str]) -> str:
    """What stands at a path, links followed, in words: "a device", "a folder" …; "" for a file, or for nothing."""
    try:
        return mode_kind(os.stat(path).st_mode)
    except (OSError, ValueError):
        return ""


def kind_at(path: str | os.PathLike[str]) -> str:
    """The same, but "a file" for a file; "" is for nothing, and for a path that can't be one.

    Raises:
        OSError: what stands there can't be found out, as with a folder that may not be read.
    """
    try:
        return mode_kind(os.stat(path).st_mode) or "a file"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return ""
        raise


def mode_kind(mode: int) -> str:
    """The same of a mode, as `os.stat` gives it."""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "" if stat.S_ISREG(mode) else "no file")


def is_missing(path: str | Path) -> bool:
    """Whether there is certainly nothing at a path; False where that can't be found out."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        pass
    return False


def name_problem(text: str) -> str:
    """Why a text can't be a part of a file's name, as a prefix; "" if it can."""
    if found := _SEPARATORS.search(text):
        return f"{found[0]!r} is in it, but it is a part of a file's name" + (", no path" if found[0] in "/\\" else "")
    if os.name == "nt" and (found := _WINDOWS.search(text)):
        return f"{found[0]!r} is in it, which no name on Windows has"
    return ""
