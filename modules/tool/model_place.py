"""Where the model of a tool lies. Quick to load."""

from pathlib import Path

from modules.model.hub import Hub, Snapshot
from modules.util.UserError import UserError

KEY = "--model"
"""What messages call the model's name."""


def find_model(name: str, hub: Hub, expected: str) -> Path | Snapshot:
    """A path on this machine or a repository, of which nothing is fetched yet.

    Args:
        name: as the user wrote it.
        hub: as the run sees it.
        expected: which models can be named.

    Raises:
        UserError: it does not exist, or can't be had.
    """
    path = Path(name.strip()).expanduser()
    # the hub's own words name what a run loads
    if (path.is_absolute() or name.strip().startswith(".")) and not path.exists():
        raise UserError(f"{KEY}: {name} does not exist. Expected {expected}, or its name on the hub.")
    return hub.place(name, KEY)


def file_names(place: Path | Snapshot) -> list[str]:
    """Names of a model's files, those of a folder without those below it."""
    return place.names() if isinstance(place, Snapshot) else [path.name for path in place.iterdir()]
