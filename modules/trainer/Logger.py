"""The one seam through which a run is logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from modules.util.config.TrainConfig import TrainConfig


class RunEnd(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run before its first step.

    Attributes:
        name: of the run, kept over resumes.
        workspace: its folder.
        config: of the run; its `to_dict()` has no secrets.
        step: steps done before; 0 for a run from the beginning.
        total: steps that the run will have.
        kept: what this logger's `kept()` was when the backup was written from which the run goes on; empty otherwise.
    """

    name: str
    workspace: Path
    config: TrainConfig
    step: int
    total: int
    kept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DrawnRound:
    """The samples that were drawn after a step.

    Attributes:
        step: after which they were drawn.
        pictures: (prompt, file) of each.
        grid: file with all of them; None where the round was cut short.
        averaged: False for those of the last weights, which are drawn beside those of the averaged ones.
    """

    step: int
    pictures: Sequence[tuple[str, Path]]
    grid: Path | None
    averaged: bool = True


class Logger(Protocol):
    """Takes what a run logs. Only the process that leads has any.

    Each method may raise any Exception. Then the run says so once and goes on without this logger.

    Attributes:
        name: for people.
    """

    name: str

    def begin(self, run: LoggedRun) -> None:
        """The run is about to make its first step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step, counted from 1. Names are paths, as `loss/train` and `learning_rate/unet`."""

    def pictures(self, drawn: DrawnRound) -> None:
        """Samples were drawn."""

    def kept(self) -> dict[str, Any]:
        """What goes into each backup, so that a resumed run is known to be the same one. Plain values by name."""
        return {}

    def end(self, state: RunEnd) -> None:
        """The run is over. Called once, also after a failure."""
