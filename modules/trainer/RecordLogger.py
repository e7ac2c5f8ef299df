"""A run's own record in its workspace, from which the window lists runs, whoever started them."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from modules.trainer.Logger import DrawnRound, LoggedRun, RunEnd
from modules.util.config.write_json import write_json

RECORDS, EVENTS, CONFIG = "record", "events.jsonl", "config.json"


def record_folder(workspace: Path, run: str) -> Path:
    """Where the record of a run is."""
    return workspace / RECORDS / run


class RecordLogger:
    """The config and a file of events in `<workspace>/record/<run>`; a resumed run goes on in the same file.

    Each event is a line of JSON with its kind and its time in seconds since 1970: `begin` (step, total), `scalars`
    (step, values), `pictures` (step, files, as seen from the workspace), `moved` (from,
    to: folders in the workspace), `end` (state). After `begin` nothing counts that was logged of later steps before.
    """

    name = "the run's record"

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._workspace = Path()

    def begin(self, run: LoggedRun) -> None:
        folder = record_folder(run.workspace, run.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._workspace = run.workspace
        # that of the last session, where it was changed before it went on
        write_json(folder / CONFIG, run.config.to_dict())
        self._file = (folder / EVENTS).open("a", encoding="utf-8")
        self._tell("begin", step=run.step, total=run.total)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._tell("scalars", step=step, values=dict(values))

    def pictures(self, drawn: DrawnRound) -> None:
        files = [_from(self._workspace, path) for _, path in drawn.pictures]
        self._tell("pictures", step=drawn.step, files=files)

    def kept(self) -> dict[str, Any]:
        return {}

    def end(self, state: RunEnd) -> None:
        if self._file is not None:
            self._tell("end", state=str(state))
            self._file.close()

    def _tell(self, kind: str, **values: Any) -> None:
        self._file.write(_line(kind, values))
        self._file.flush()


def tell_moved(workspace: Path, old: Path, new: Path) -> None:
    """Tells the records of earlier runs of a workspace where a folder of theirs is now.

    Args:
        workspace: of the runs.
        old, new: folders in it.

    Raises:
        OSError: a record can't be written.
    """
    records = workspace / RECORDS
    for folder in sorted(records.iterdir()) if records.is_dir() else []:
        if (folder / EVENTS).is_file():
            with (folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write(_line("moved", {"from": _from(workspace, old), "to": _from(workspace, new)}))


def _line(kind: str, values: Mapping[str, Any]) -> str:
    return f"{json.dumps({'kind': kind, 'time': time.time(), **values})}\n"


def _from(workspace: Path, path: Path) -> str:
    """A path as seen from the workspace, so that it holds wherever that is taken."""
    return Path(os.path.relpath(path, workspace)).as_posix()
