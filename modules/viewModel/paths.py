"""Paths that people give, whatever they are."""

from datetime import datetime
from pathlib import Path


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; False where that can't be found out: a name too long, a folder that is closed."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def nearest_folder(path: str | Path) -> Path:
    """The folder of a path, or the nearest one above it that exists; the working directory where none does."""
    path = Path(path or ".").absolute()
    # on Windows, not even the drive need be there
    return next((folder for folder in (path, *path.parents) if is_folder(folder)), Path.cwd())


def portable(path: str | Path) -> str:
    """A path inside the working directory as seen from there: such presets can be taken to another machine."""
    here, path = Path.cwd(), Path(path).absolute()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def fresh_path(folder: Path, kind: str, ending: str = "") -> Path:
    """A path in a folder that nothing has yet: what it is for, the time, and a number where that is not enough."""
    stamp, number = f"{kind} {datetime.now():%Y-%m-%d_%H-%M-%S}", 0
    while (path := folder / f"{stamp}{f'-{number}' if number else ''}{ending}").exists():
        number += 1
    return path
