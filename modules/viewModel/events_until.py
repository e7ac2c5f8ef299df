import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.run.RunControl import EVENTS
from modules.run.RunProcess import Event, read_event

# what a run that goes on from a backup still is about
KINDS = ("step", "validation", "sample")
# of the runs that are looked through, the newest first
MOST_RUNS = 100


def events_until(backup: Path, folders: Sequence[Path]) -> list[Event]:
    """What was told of steps, validation and samples until a backup was written, over all runs that led to it.

    Reads many files; not for a window's own thread.

    Args:
        backup: its folder.
        folders: below which runs have folders of their own, called `run …`.

    Returns:
        (kind, values), the oldest first; as much as is still known, which may be nothing.
    """
    runs = sorted((path for folder in folders for path in folder.glob("run *")), key=lambda path: path.name)
    runs = runs[::-1][:MOST_RUNS]
    found: list[Event] = []
    wanted: str | None = str(backup)
    while wanted is not None:
        run, events = _writer(wanted, runs)
        found[:0] = [event for event in events if event[0] in KINDS]
        wanted = next((path for kind, values in events if kind == "resumed" and (path := _path(values))), None)
        # none leads to itself, whatever its file says
        runs = [path for path in runs if path != run]
    return found


def _writer(backup: str, runs: Sequence[Path]) -> tuple[Path | None, list[Event]]:
    """The run that wrote a backup, and what it told until the backup's step; it goes on while that is written."""
    name = os.path.basename(os.path.normpath(backup)).encode()
    for run in runs:
        try:
            lines = (run / EVENTS).read_bytes().splitlines()
        except OSError:
            continue
        for place, line in enumerate(lines):
            # most lines have other things to tell, which is seen faster so
            if name not in line or (told := read_event(line)) is None or told[0] != "backup":
                continue
            if _place(_path(told[1])) == _place(backup):
                told_before = [event for one in lines[:place] if (event := read_event(one)) is not None]
                return run, [event for event in told_before if not _after(event[1], told[1])]
    return None, []


def _after(values: dict[str, Any], backup: dict[str, Any]) -> bool:
    """Whether something was told of a later step than a backup's."""
    step, last = values.get("step"), backup.get("step")
    return isinstance(step, int) and isinstance(last, int) and step > last


def _path(values: dict[str, Any]) -> str:
    path = values.get("path")
    return path if isinstance(path, str) else ""


def _place(path: str) -> str:
    """The same text for the same place, whether it is there or not."""
    return os.path.normcase(os.path.abspath(path)) if path else ""
