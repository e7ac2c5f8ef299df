"""What a run tells others, and what others may ask of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Listener = Callable[[str, dict[str, Any]], None]


@dataclass
class TrainEvents:
    """Calls every listener with (kind, values). Values are JSON types.

    Kinds: `status` (text), `progress` (stage, done, total, and unit "bytes" where those are counted), `step` (step,
    total, epoch, loss, learning_rates, gradient_norm, epochs, epoch_batches: done and all of the epoch, seconds,
    data_wait: seconds of them in which it waited for data), `validation` (step, loss), `sample` (step, path), `backup`
    (step, path; told when it is on disk, which may be some steps later), `resumed` (step, path of the backup), `record`
    (path of the run's record in its workspace), `saved` (path), `warning` (text), `finished` (report).
    """

    listeners: list[Listener] = field(default_factory=list)

    def emit(self, kind: str, **values: Any) -> None:
        for listener in self.listeners:
            listener(kind, values)


@dataclass
class TrainCommands:
    """Wishes that the loop fulfils after the step in flight. Set them from any thread or a signal handler."""

    stop: bool = False
    sample: bool = False
    backup: bool = False
    save: bool = False

    def take(self) -> list[bool]:
        """The wishes in the order of the attributes; they are fulfilled elsewhere, but for `stop`, which stays."""
        wishes = list(vars(self))
        taken = [getattr(self, name) for name in wishes]
        for name in wishes:
            if name != "stop":
                setattr(self, name, False)
        return taken

    def add(self, wishes: Sequence[bool]) -> None:
        """Adds what `take` gave."""
        for name, wish in zip(vars(self), wishes, strict=True):
            setattr(self, name, getattr(self, name) or wish)
