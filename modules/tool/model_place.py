"""Where the model of a tool lies. Quick to load."""

from pathlib import Path

from modules.model.hub import Snapshot

KEY = "--model"
"""What messages call the model's name."""


def file_names(place: Path | Snapshot) -> list[str]:
    """Names of a model's files, those of a folder without those below it."""
    return place.names() if isinstance(place, Snapshot) else [path.name for path in place.iterdir()]
