from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules.trainer.Logger import DrawnRound, LoggedRun, Logger, RunEnd
from modules.trainer.StepTimes import StepTimes

SMOOTHING = 0.99


class TrainLog:
    """What a run tells its loggers. A log is never worth a run: one that fails is told of once, and left out.

    Args:
        loggers: none in a process that does not lead.
        run: what they are told first.
        kept: logger's name -> what it keeps in backups, of the one from which the run goes on.
        warn: gets a line for each logger that fails.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        run: LoggedRun,
        kept: Mapping[str, Mapping[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        self._loggers, self._warn, self._broken = list(loggers), warn, set[str]()
        self._smooth: float | None = None
        for one in self._loggers:
            own = LoggedRun(run.name, run.workspace, run.config, run.step, run.total, kept.get(one.name, {}))
            self._tell(one, lambda one=one, own=own: one.begin(own))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        for one in self._loggers:
            self._tell(one, lambda one=one: one.scalars(values, step))

    def step(
        self,
        step: int,
        loss: float,
        gradient_norm: float,
        rates: dict[str, float],
        optimizer: dict[str, float],
        times: StepTimes,
    ) -> None:
        """What every step logs.

        Args:
            step: its number, from 1.
            loss, gradient_norm: of the step.
            rates: learning rates by trained set.
            optimizer: what it says of itself.
            times: the last is of the step.
        """
        self._smooth = loss if self._smooth is None else SMOOTHING * self._smooth + (1 - SMOOTHING) * loss
        self.scalars(
            {
                "loss/train": loss,
                "loss/smooth": self._smooth,
                "gradient_norm": gradient_norm,
                **{f"learning_rate/{trained_set}": rate for trained_set, rate in rates.items()},
                **{f"optimizer/{name}": value for name, value in optimizer.items()},
                "seconds/step": times.seconds[-1],
                "seconds/data_wait": times.waited[-1],
            },
            step,
        )

    def pictures(self, drawn: DrawnRound | None) -> None:
        """A round of samples, if one was drawn."""
        if drawn is not None:
            for one in self._loggers:
                self._tell(one, lambda one=one: one.pictures(drawn))

    def kept(self) -> dict[str, dict[str, Any]]:
        """What loggers keep in backups, by their names; of those alone that keep something."""
        found: dict[str, dict[str, Any]] = {}
        for one in self._loggers:
            self._tell(one, lambda one=one: found.update({one.name: one.kept()}))
        return {name: own for name, own in found.items() if own}

    def end(self, state: RunEnd) -> None:
        """The run is over; loggers that failed end, too, as they may have started something."""
        for one in self._loggers:
            self._tell(one, lambda one=one: one.end(state), last=True)
        self._loggers = []

    def _tell(self, one: Logger, call: Callable[[], None], last: bool = False) -> None:
        broken = one.name in self._broken
        if broken and not last:
            return
        try:
            call()
        # whatever a library raises: the run goes on
        except Exception as error:
            if not broken:
                self._broken.add(one.name)
                self._warn(f"{one.name} fails, and the run goes on without it: {_reason(error)}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
