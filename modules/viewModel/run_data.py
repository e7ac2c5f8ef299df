"""What a run has logged: its curves and its pictures, from the lines of its events. Loads no torch."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from modules.run.RunProcess import read_event
from modules.trainer.backup_order import PROGRESS, list_backups
from modules.viewModel.RunModel import SMOOTHING, SamplePicture, picture_of

RATES = "learning_rate/"


@dataclass
class Curve:
    """Values over steps.

    Attributes:
        steps, seconds, values: of each point, by growing step; seconds of training until then, 0 for unknown.
    """

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, seconds: float, value: float) -> None:
        """One more point; nothing stays of its step and later ones: a run that goes on from a backup repeats them."""
        self.cut(step - 1)
        self.steps.append(step)
        self.seconds.append(seconds)
        self.values.append(value)

    def cut(self, last: int) -> None:
        """Forgets what comes after a step."""
        while self.steps and self.steps[-1] > last:
            for own in (self.steps, self.seconds, self.values):
                own.pop()

    def points(self, by_time: bool = False, smooth: bool = False) -> list[tuple[float, float]]:
        """(step or minutes, value) of each.

        Args:
            by_time: minutes of training instead of steps.
            smooth: values are averaged over about the last 20.
        """
        values, last = [], None
        for value in self.values:
            # what is not finite must not spoil all that comes after it
            last = value if last is None or last != last else SMOOTHING * last + (1 - SMOOTHING) * value
            values.append(last if smooth else value)
        places = [seconds / 60 for seconds in self.seconds] if by_time else self.steps
        return list(zip(places, values, strict=True))


@dataclass
class RunData:
    """What a run has logged.

    Attributes:
        loss, validation: curves.
        rates: trained set -> curve of its learning rate.
        pictures: in the order in which they were drawn; of a step that was drawn twice both.
    """

    loss: Curve = field(default_factory=Curve)
    validation: Curve = field(default_factory=Curve)
    rates: dict[str, Curve] = field(default_factory=dict)
    pictures: list[SamplePicture] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def knows_time(self) -> bool:
        """Whether points have seconds."""
        return bool(self.loss.seconds) and self.loss.seconds[-1] > 0


def read_run(files: Sequence[Path], workspace: Path | None) -> RunData:
    """Reads the events of a run; much, and so not for a window's own thread.

    Args:
        files: of its events, the oldest first; none: what its workspace alone tells is read.
        workspace: of the run, if it is known.
    """
    if not files:
        return _of_backup(workspace) if workspace is not None else RunData()
    data = RunData()
    for values in _events(files):
        take = _TAKE.get(values["kind"])
        if take is not None:
            take(data, values)
        elif values["kind"] == "pictures" and workspace is not None:
            for file in values["files"]:
                data.pictures.append(picture_of(int(values["step"]), workspace / PurePosixPath(file)))
        elif values["kind"] == "moved" and workspace is not None:
            _move(data, workspace / values["from"], workspace / values["to"])
    return data


def _move(data: RunData, old: Path, new: Path) -> None:
    """A later run of the workspace has set a folder aside."""
    for place, picture in enumerate(data.pictures):
        if picture.path.is_relative_to(old):
            path = new / picture.path.relative_to(old)
            data.pictures[place] = SamplePicture(picture.step, path, picture.prompt)


def _events(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            if (told := read_event(line)) is not None:
                kind, values = told
                yield {"kind": kind, **values}


def _begin(data: RunData, values: dict[str, Any]) -> None:
    """A session goes on from a step: what was logged of later ones does not count."""
    step = int(values["step"])
    for curve in (data.loss, data.validation, *data.rates.values()):
        curve.cut(step)
    data.pictures = [picture for picture in data.pictures if picture.step <= step]
    data.seconds = data.loss.seconds[-1] if data.loss.seconds else 0.0


def _scalars(data: RunData, values: dict[str, Any]) -> None:
    step, logged = int(values["step"]), values["values"]
    data.seconds += logged.get("seconds/step", 0.0)
    for name, value in logged.items():
        if name == "loss/train":
            data.loss.add(step, data.seconds, value)
        elif name == "loss/validation":
            data.validation.add(step, data.seconds, value)
        elif name.startswith(RATES):
            data.rates.setdefault(name.removeprefix(RATES), Curve()).add(step, data.seconds, value)


def _step(data: RunData, values: dict[str, Any]) -> None:
    step = int(values["step"])
    data.seconds += values.get("seconds", 0.0)
    data.loss.add(step, data.seconds, values["loss"])
    for name, rate in values["learning_rates"].items():
        data.rates.setdefault(name, Curve()).add(step, data.seconds, rate)


def _validation(data: RunData, values: dict[str, Any]) -> None:
    data.validation.add(int(values["step"]), data.seconds, values["loss"])


def _sample(data: RunData, values: dict[str, Any]) -> None:
    data.pictures.append(picture_of(values["step"], Path(values["path"])))


# kinds of a run's record, and those that a run tells the window
_TAKE: dict[str, Callable[[RunData, dict[str, Any]], None]] = {
    "begin": _begin, "scalars": _scalars, "step": _step, "validation": _validation, "sample": _sample,
    "resumed": _begin,
}  # fmt: skip


def _of_backup(workspace: Path) -> RunData:
    """What the newest backup tells: losses without times; and the samples that lie there."""
    data = RunData()
    for backup in list_backups(workspace / "backup"):
        try:
            progress = json.loads((backup / PROGRESS).read_text(encoding="utf-8"))
            for step, loss in enumerate(progress["losses"], 1):
                data.loss.add(step, 0.0, float(loss))
            for step, loss in progress["validation"]:
                data.validation.add(int(step), 0.0, float(loss))
            break
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for path in sorted(workspace.glob("samples/* - */step-*.*")):
        step = path.stem.split("-")[1]
        if step.isdigit():
            data.pictures.append(picture_of(int(step), path))
    return data
