"""Writes JSON so that a file is always either the old one or the new one."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from modules.util.config.errors import ConfigError
from modules.util.config.file_kind import special_kind


def json_text(data: Any) -> str:
    """JSON for people: indented, keys in their order, one line break at the end."""
    return json.dumps(data, indent=4, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_json(data: Any) -> str:
    """JSON for hashing: equal data gives equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_json(path: str | Path, data: Any, private: bool = False) -> None:
    """Replaces a file in one step; if that fails, the old file is still there.

    Args:
        path: of the file.
        data: that it is to hold.
        private: whether only this user can read it, from its first byte on.

    Raises:
        ConfigError: if the file cannot be written, with the reason.
    """
    target = Path(os.path.realpath(path))
    # of what is private there is but one, so that none of a program that was killed stays
    mark = "" if private else f".{os.getpid()}"
    temporary = target.with_name(f".{target.name}{mark}.tmp")
    if kind := special_kind(target):
        raise ConfigError(f"cannot be written: it is {kind}, expected a file", str(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if private:
            temporary.unlink(missing_ok=True)
        opener = _open_private if private else None
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n", opener=opener) as file:
                file.write(json_text(data))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from None
    _sync_folder(target.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def _sync_folder(folder: Path) -> None:
    # Windows cannot open folders
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
