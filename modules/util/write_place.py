"""What may be written to: the one set of rules, asked before anything is loaded and again by whatever writes."""

import os
from pathlib import Path

from modules.util.config.file_kind import kind_at, special_kind
from modules.util.UserError import UserError


def check_file_place(path: Path, key: str) -> None:
    """Raises UserError if a path can't be that of a file that is written: no name, or something else stands there."""
    _check_text(path, key)
    if kind := special_kind(path):
        raise UserError(f"{key}: {path} is {kind}, expected a file. Choose another name.")


def check_folder_place(path: Path, key: str) -> None:
    """The same for a folder that is written into."""
    _check_text(path, key)
    # one look: between two, another process of the run may make the folder
    if (kind := kind_at(path)) not in ("", "a folder"):
        raise UserError(f"{key}: {path} is {kind}, expected a folder. Choose another place.")


def check_output_place(path: Path, key: str) -> None:
    """The same for an output that is a file or a folder, as its format says."""
    _check_text(path, key)
    if (kind := special_kind(path)) not in ("", "a folder"):
        raise UserError(f"{key}: {path} is {kind}, expected a file or a folder. Choose another name.")


def _check_text(path: Path, key: str) -> None:
    """No part of a path may be blank: nobody finds such a file again."""
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{key}: {text!r} holds a null byte, which no path can.")
    parts = [part for part in path.parts if part != path.anchor]
    if blank := next((part for part in parts if not part.strip()), None):
        raise UserError(f"{key}: {text!r} has a name of blanks ({blank!r}). Choose another name.")
