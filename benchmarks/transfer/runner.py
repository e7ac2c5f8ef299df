"""Runs the trainings of a measurement, several at a time, each in a process with one thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from benchmarks.pool import answer, cache_folder
from benchmarks.transfer.Results import Results
from benchmarks.transfer.search import next_rates, rate_of
from benchmarks.transfer.Setting import Setting
from benchmarks.transfer.tasks import TASKS, Learner


@dataclass(frozen=True)
class Trial:
    """One training."""

    setting: Setting
    seed: int
    rate: float


# what is still to be trained of one question, given what is known; none: it is answered
Wanted = Callable[[Results], Sequence[Trial]]
# a training's loss, and that before any
Train = Callable[[Trial], tuple[float, float]]


def search(setting: Setting, seed: int, expected: float) -> Wanted:
    """The search for the best rate of a setting and seed."""

    def wanted(results: Results) -> list[Trial]:
        return [Trial(setting, seed, rate_of(k)) for k in next_rates(results.on_grid(setting, seed), expected)]

    return wanted


def single(trial: Trial) -> Wanted:
    """One training at one rate."""
    return lambda results: [] if (trial.setting, trial.seed, trial.rate) in results else [trial]


def run(
    questions: Sequence[Wanted],
    results: Results,
    workers: int,
    told: Callable[[Trial, float], None],
    until: float | None = None,
    train: Train | None = None,
) -> bool:
    """Answers the questions, the first ones first.

    Args:
        questions: what is wanted.
        results: of what was trained before; takes each new loss at once.
        workers: how many trainings run at a time, as `benchmarks.pool.answer` takes it.
        told: gets each training and its loss.
        until: `time.monotonic()` from which no further training begins; None: never.
        train: in the place of `train_trial`; a function that can be pickled.

    Returns:
        whether all questions are answered.
    """

    def take(trial: Trial, outcome: tuple[float, float]) -> None:
        loss, untrained = outcome
        results.add_untrained(trial.setting.task, trial.setting.width, untrained)
        results.add(trial.setting, trial.seed, trial.rate, loss)
        told(trial, loss)

    asked = [partial(question, results) for question in questions]
    return answer(asked, train or train_trial, take, workers, until)


@cache
def _learner(task: str, width: str) -> Learner:
    return TASKS[task].make(width, cache_folder())


def train_trial(trial: Trial) -> tuple[float, float]:
    """The loss of a training, and that before any."""
    learner = _learner(trial.setting.task, trial.setting.width)
    return learner.train(trial.setting.options(), trial.rate, trial.seed), learner.untrained
