from collections.abc import Iterator, Sequence
from pathlib import Path

from modules.trainer.RunControl import EVENTS
from modules.trainer.RunProcess import Event, RunProcess

# what a run that goes on from a backup still is about
KINDS = ("step", "validation", "sample")
# of the runs that are looked through, the newest first
MOST_RUNS = 100


def events_until(backup: Path, folders: Sequence[Path]) -> list[Event]:
    """What was told of steps, validation and samples until a backup was written, over all runs that led to it.

    Args:
        backup: its folder.
        folders: below which runs have folders of their own, called `run …`.

    Returns:
        (kind, values), the oldest first; as much as is still known, which may be nothing.
    """
    runs = sorted((path for folder in folders for path in folder.glob("run *")), key=lambda path: path.name)
    runs = runs[::-1][:MOST_RUNS]
    found: list[Event] = []
    wanted: Path | None = backup.absolute()
    while wanted is not None:
        run, events = next(_writers(wanted, runs), (None, []))
        found[:0] = [event for event in events if event[0] in KINDS]
        wanted = next((Path(values["path"]).absolute() for kind, values in events if kind == "resumed"), None)
        # none leads to itself, whatever its file says
        runs = [path for path in runs if path != run]
    return found


def _writers(backup: Path, runs: Sequence[Path]) -> Iterator[tuple[Path, list[Event]]]:
    """The runs that wrote a backup, each with what it told until then."""
    for run in runs:
        try:
            # most have not, which is seen faster so
            if backup.name.encode() not in (run / EVENTS).read_bytes():
                continue
        except OSError:
            continue
        told = RunProcess(run).events()
        for place, (kind, values) in enumerate(told):
            if kind == "backup" and Path(values["path"]).absolute() == backup:
                yield run, told[:place]
                break
