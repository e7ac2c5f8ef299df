"""Writes JSON so that a file is always either the old one or the new one."""

import json
import os
from pathlib import Path
from typing import Any

from modules.util.config.errors import ConfigError
from modules.util.config.file_kind import special_kind
from modules.util.config.whole_file import replacing


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
    if kind := special_kind(target):
        raise ConfigError(f"cannot be written: it is {kind}, expected a file", str(path))
    # of what is private there is but one, so that none of a program that was killed stays
    beside = ".tmp" if private else f".{os.getpid()}.tmp"
    try:
        if private:
            target.with_name(f".{target.name}{beside}").unlink(missing_ok=True)
        with replacing(target, beside, opener=_open_private if private else None) as file:
            file.write(json_text(data).encode())
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from None


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)
