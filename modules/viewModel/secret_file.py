import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.util.config.errors import ConfigError
from modules.util.config.write_json import json_text


def write_secrets(path: Path, secrets: Mapping[str, Any]) -> None:
    """Replaces a file in one step by one that only this user can read, from its first byte on.

    Raises:
        ConfigError: it can't be written; then the old file is still there.
    """
    target = Path(os.path.realpath(path))
    # always the same, so that one of a program that was killed does not stay
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(json_text(dict(secrets)).encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from None
