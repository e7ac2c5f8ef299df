"""Writes JSON so that a file is always either the old one or the new one."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from modules.util.config.errors import ConfigError


def json_text(data: Any) -> str:
    """JSON for people: indented, keys in their order, one line break at the end."""
    return json.dumps(data, indent=4, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_json(data: Any) -> str:
    """JSON for hashing: equal data gives equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_json(path: str | Path, data: Any) -> None:
    """Replaces a file in one step; if that fails, the old file is still there.

    Raises:
        ConfigError: if the file cannot be written, with the reason.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
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


def _sync_folder(folder: Path) -> None:
    # Windows cannot open folders
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
