"""Reads a JSON file, or says in one line why it cannot be read."""

import json
import math
import os
from pathlib import Path
from typing import Any

from modules.util.config.BaseConfig import is_comment
from modules.util.config.errors import ConfigError, show_value
from modules.util.config.file_kind import special_kind

LARGEST = 50_000_000
"""Bytes of a config file or list."""

DEEPEST = 50
"""Objects and lists in a config file may be nested this deep."""


def read_json(path: str | Path, expected: type = dict, pipes: bool = False) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        expected: dict or list, whichever its outermost value has to be.
        pipes: whether it may be a pipe, as a shell makes it of <(command); one that nobody writes to is waited for.

    Raises:
        ConfigError: naming file, line and column where they matter.
    """
    source = str(path)
    kind = special_kind(path)
    if kind not in ("", "a folder", *(("a pipe", "a device") if pipes else ())):
        # a pipe would be waited for without end
        raise ConfigError(f"is {kind}, expected a JSON file", source)
    try:
        if (size := os.stat(path).st_size) > LARGEST:
            raise ConfigError(f"has {size / 1e6:.0f} MB, expected a JSON file of at most {LARGEST / 1e6:.0f}", source)
        with open(path, "rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8-sig")
        if len(text) > LARGEST:
            raise ConfigError(f"has more than {LARGEST / 1e6:.0f} MB, expected a JSON file", source)
    except FileNotFoundError:
        raise ConfigError("there is no such file", source) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, expected a JSON file", source) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start}); save it as UTF-8", source) from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}", source) from None
    data = parse_json(text, source)
    if not isinstance(data, expected):
        names = {dict: "an object {…}", list: "a list […]"}
        raise ConfigError(f"holds {show_value(data)}, expected {names[expected]}", source)
    return data


def parse_json(text: str, source: str) -> Any:
    """Parses JSON strictly: a key that stands twice in one object is an error, unless it is a comment."""
    if not text.strip():
        raise ConfigError("is empty, expected JSON", source)
    try:
        data = loads(text, object_pairs_hook=lambda pairs: _unique(pairs, source))
        json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}", source
        ) from None
    except UnicodeEncodeError:
        raise ConfigError("is not valid JSON: half of a \\ud800–\\udfff pair stands alone", source) from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("is not a config: a value in it is nested too deeply or too long", source) from None
    if _deeper_than(data, DEEPEST):
        raise ConfigError(f"is not a config: it is nested deeper than {DEEPEST} levels", source)
    return data


def loads(text: str, **hooks: Any) -> Any:
    """`json.loads`, but numbers that JSON has no form for become texts as OneTrainer writes them: "inf", "nan"."""
    return json.loads(text, parse_constant=lambda name: str(float(name)), parse_float=_finite_or_text, **hooks)


def _finite_or_text(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else str(number)


def _unique(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen and not is_comment(key):
                raise ConfigError(f"the key {key!r} stands twice in one object", source)
            seen.add(key)
    return data


def _deeper_than(data: Any, levels: int) -> bool:
    layer = [data]
    for _ in range(levels):
        layer = [
            item
            for value in layer
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not layer:
            return False
    return True
