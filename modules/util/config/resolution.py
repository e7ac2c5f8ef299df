"""The text form of training resolutions."""

import re
from typing import Any, NamedTuple

from modules.util.config.errors import show_value

from pydantic_core import PydanticCustomError

SMALLEST, LARGEST = 8, 65536
_SIZE = re.compile(r"(\d{1,5})(?:\s*[xX×]\s*(\d{1,5}))?")


class Resolution(NamedTuple):
    """A training resolution in pixels.

    If `exact`, images get this width and height; otherwise they keep their shape and get about width·height pixels.
    """

    width: int
    height: int
    exact: bool


def parse_resolutions(text: str) -> tuple[Resolution, ...]:
    """Reads "512", "512,768" or "512x768" (width x height); each entry of a list may have either form.

    Raises:
        ValueError: if the text has another form or a size is out of range.
    """
    resolutions = []
    for entry in text.split(","):
        match = _SIZE.fullmatch(entry.strip())
        if not match:
            raise ValueError(f"{entry.strip()!r} is not a size")
        width, height = int(match[1]), int(match[2] or match[1])
        if not (SMALLEST <= min(width, height) and max(width, height) <= LARGEST):
            raise ValueError(f"{entry.strip()!r} is not between {SMALLEST} and {LARGEST}")
        resolutions.append(Resolution(width, height, match[2] is not None))
    return tuple(resolutions)


def check_resolution(value: Any) -> Any:
    """Validates a field with resolutions; a plain whole number is accepted, too."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    try:
        parse_resolutions(value)
    except ValueError:
        raise PydanticCustomError(
            "config",
            "{text}",
            {
                "text": f'found {show_value(value)}, expected pixels as "512", "512,768" or "512x768", '
                f"each from {SMALLEST} to {LARGEST}"
            },
        ) from None
    return value
