"""What may be written to: the one set of rules, asked before anything is loaded and again by whatever writes."""

import os
import re
import stat
from pathlib import Path

from modules.util.UserError import UserError

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
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "" if stat.S_ISREG(mode) else "no file")


def check_file_place(path: Path, key: str) -> None:
    """Raises UserError if a path can't be that of a file that is written: no name, or something else stands there."""
    _check_text(path, key)
    if kind := special_kind(path):
        raise UserError(f"{key}: {path} is {kind}, expected a file. Choose another name.")


def check_folder_place(path: Path, key: str) -> None:
    """The same for a folder that is written into."""
    _check_text(path, key)
    kind = special_kind(path)
    if kind != "a folder" and (kind or path.exists()):
        raise UserError(f"{key}: {path} is {kind or 'a file'}, expected a folder. Choose another place.")


def check_output_place(path: Path, key: str) -> None:
    """The same for an output that is a file or a folder, as its format says."""
    _check_text(path, key)
    if (kind := special_kind(path)) not in ("", "a folder"):
        raise UserError(f"{key}: {path} is {kind}, expected a file or a folder. Choose another name.")


def name_part_problem(text: str) -> str:
    """Why a text can't be a part of a file's name, as a prefix; "" if it can."""
    if found := _SEPARATORS.search(text):
        return f"{found[0]!r} is in it, but it is a part of a file's name" + (", no path" if found[0] in "/\\" else "")
    if os.name == "nt" and (found := _WINDOWS.search(text)):
        return f"{found[0]!r} is in it, which no name on Windows has"
    return ""


def _check_text(path: Path, key: str) -> None:
    """No part of a path may be blank: nobody finds such a file again."""
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{key}: {text!r} holds a null byte, which no path can.")
    parts = [part for part in path.parts if part != path.anchor]
    if blank := next((part for part in parts if not part.strip()), None):
        raise UserError(f"{key}: {text!r} has a name of blanks ({blank!r}). Choose another name.")
