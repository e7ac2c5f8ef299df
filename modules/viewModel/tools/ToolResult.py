from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ToolResult:
    """What a tool found.

    Attributes:
        text: for people.
        picture: PNG file, None if there is none.
        plot: whether the picture is one of lines and letters, which takes the colours of the window.
        values: path -> value for the run's config, if they can be applied.
    """

    text: str
    picture: Path | None = None
    plot: bool = True
    values: dict[str, Any] = field(default_factory=dict)
