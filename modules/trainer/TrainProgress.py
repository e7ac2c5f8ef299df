import time
from dataclasses import asdict, dataclass, field
from typing import Any

from modules.util.enum.TimeUnit import TimeUnit

SECONDS = {TimeUnit.SECOND: 1, TimeUnit.MINUTE: 60, TimeUnit.HOUR: 3600}


@dataclass
class TrainProgress:
    """Where a run stands. Everything that a resumed run needs to know beside weights and optimizer state.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data that are over.
        seen, seen_batches: samples and batches of the epoch that is not.
        losses: the loss of every step so far.
        validation: (step, loss) of every validation.
        seconds: training time of earlier sessions and this one, without sampling, backups and loading.
        samples: rounds of samples: step and the file of each.
        last: step at which each periodic action last happened.
    """

    step: int = 0
    epoch: int = 0
    seen: int = 0
    seen_batches: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def problem_of(cls, data: Any, step: int) -> str:
        """Why JSON can't be the progress of a run after `step` steps; "" if it can."""
        if not isinstance(data, dict) or not {"step", "epoch", "losses"} <= set(data) <= {*cls.__dataclass_fields__}:
            return "it lacks what it should hold, or holds more"
        known = cls(**data)
        counts = (known.step, known.epoch, known.seen, known.seen_batches)
        if not all(type(count) is int and count >= 0 for count in counts):
            return f"found {counts} for steps, epochs, samples and batches"
        if known.step != step:
            return f"it is at step {known.step}, the backup at {step}"
        if not isinstance(known.losses, list) or len(known.losses) != known.step:
            return f"it has not one loss for each of {known.step} steps"
        if not all(isinstance(kind, own) for kind, own in (
            (known.validation, list), (known.samples, list), (known.last, dict), (known.seconds, (int, float)),
        )):  # fmt: skip
            return "a part of it is of another kind"
        pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in known.validation)
        rounds = all(isinstance(one, dict) and {"step", "grid", "files"} <= set(one) for one in known.samples)
        return "" if pairs and rounds else "a part of it is of another kind"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainProgress":
        known = cls(**data)
        known.validation = [tuple(pair) for pair in known.validation]
        return known


class Interval:
    """Tells whether a periodic action is due after a step.

    Args:
        every: length of the interval; 0 switches it off.
        unit: what it counts. Times are measured on the clock of this session.
        skip_first: nothing is due before this much of the run is over, in the same unit.
    """

    def __init__(self, every: int, unit: TimeUnit, skip_first: int = 0) -> None:
        self.every, self.unit, self.skip_first = every, unit, skip_first
        self.started = self.previous = time.monotonic()

    @property
    def active(self) -> bool:
        return self.unit == TimeUnit.ALWAYS or (self.every > 0 and self.unit != TimeUnit.NEVER)

    def due(self, step: int, epoch: int, epoch_ended: bool) -> bool:
        """Whether it is time, after `step` steps (counted from 1) with `epoch` epochs over."""
        if not self.active:
            return False
        if self.unit == TimeUnit.ALWAYS:
            return step > self.skip_first
        if self.unit == TimeUnit.STEP:
            return step > self.skip_first and step % self.every == 0
        if self.unit == TimeUnit.EPOCH:
            return epoch_ended and epoch > self.skip_first and epoch % self.every == 0
        scale, now = SECONDS[self.unit], time.monotonic()
        if now - self.previous < self.every * scale or now - self.started < self.skip_first * scale:
            return False
        self.previous = now
        return True


def limit_passed(limit: int | None, unit: TimeUnit, progress: TrainProgress) -> bool:
    """Whether a run is past a limit, as one after which a component is not trained. None, 0 and NEVER: no limit."""
    if not limit or unit in (TimeUnit.NEVER, TimeUnit.ALWAYS):
        return False
    if unit == TimeUnit.STEP:
        return progress.step >= limit
    if unit == TimeUnit.EPOCH:
        return progress.epoch >= limit
    return progress.seconds >= limit * SECONDS[unit]
