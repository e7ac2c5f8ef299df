"""The few numbers that a list says of a run, from its events, without reading all of them as JSON. Loads no torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from modules.run.RunProcess import read_event
from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json

# steps at the end whose mean is the last loss: one step alone says mostly which timesteps it drew
LAST_STEPS = 20
# lines at the end that are looked through for them
TAIL = 200


@dataclass(frozen=True)
class Summary:
    """What a list says of a run.

    Attributes:
        began, changed: seconds since 1970 of the first and the last event, 0 for unknown.
        steps, total: done, and those that it will have.
        loss: mean of the last steps; None before the first.
        best: smallest validation loss; None if there was none.
        state: as the run's last session ended; empty if it did not say so.
        reason: why it failed.
        record: folder of the run's record in its workspace, as the window was told; empty for none.
    """

    began: float = 0.0
    changed: float = 0.0
    steps: int = 0
    total: int = 0
    loss: float | None = None
    best: float | None = None
    state: str = ""
    reason: str = ""
    record: str = ""


class Summaries:
    """What files of runs say, which are read again when they have changed. Used by one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], Any]] = {}

    def of(self, file: Path) -> Summary:
        """Of a file of events; empty if it can't be read."""
        try:
            return self._read(file, lambda: summarize(file.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # not there any more, or nothing that a run of ours wrote
            return Summary()

    def config(self, file: Path) -> dict[str, Any]:
        """A config as it stands in its file; empty if that can't be read."""
        try:
            return self._read(file, lambda: read_json(file))
        except (OSError, ConfigError):
            return {}

    def _read(self, file: Path, read: Callable[[], Any]) -> Any:
        status = file.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        known = self._known.get(file)
        if known is None or known[0] != stamp:
            known = self._known[file] = (stamp, read())
        return known[1]


def summarize(data: bytes) -> Summary:
    """The summary of a run's events."""
    began = _time(data[: data.find(b"\n") + 1])
    tail = data.rsplit(b"\n", TAIL + 1)[1 if data.count(b"\n") > TAIL else 0 :]
    losses: list[float] = []
    steps = total = 0
    changed = began
    for line in tail:
        told = read_event(line)
        if told is None:
            continue
        kind, values = told
        changed = values.get("time", changed)
        loss = values.get("loss") if kind == "step" else values.get("values", {}).get("loss/train")
        if loss is not None and kind in ("step", "scalars"):
            steps, total = int(values["step"]), int(values.get("total", total))
            losses.append(loss)
    if not steps and (known := _last(data, b"begin")):
        steps = int(known["step"])
    if not total and (known := _last(data, b"begin")):
        total = int(known["total"])
    end = _last(data, b"ended") or {}
    state = end.get("status", "")
    if not state and data.rfind(b'{"kind": "end"') > data.rfind(b'{"kind": "begin"'):
        state = (_last(data, b"end") or {}).get("state", "")
    return Summary(
        began, changed, steps, total, fmean(losses[-LAST_STEPS:]) if losses else None, _best(data), state,
        end.get("error", ""), (_last(data, b"record") or {}).get("path", ""),
    )  # fmt: skip


def _last(data: bytes, kind: bytes) -> dict | None:
    """The last event of a kind."""
    place = data.rfind(b'{"kind": "' + kind + b'"')
    if place < 0:
        return None
    told = read_event(data[place:].split(b"\n", 1)[0])
    return told[1] if told else None


def _best(data: bytes) -> float | None:
    """The smallest validation loss. Most lines have other things to tell, which is seen faster in bytes."""
    found: list[float] = []
    for mark, key in ((b'{"kind": "validation"', "loss"), (b'"loss/validation": ', "")):
        place = data.find(mark)
        while place >= 0:
            start, end = data.rfind(b"\n", 0, place) + 1, data.find(b"\n", place)
            told = read_event(data[start : end if end >= 0 else len(data)])
            if told is not None:
                found.append(told[1][key] if key else told[1]["values"]["loss/validation"])
            place = data.find(mark, place + len(mark))
    return min((value for value in found if value == value), default=None)


def _time(line: bytes) -> float:
    try:
        return float(json.loads(line)["time"])
    except (ValueError, KeyError, TypeError):
        return 0.0
