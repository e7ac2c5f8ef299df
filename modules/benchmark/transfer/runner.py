"""Runs the trainings of a measurement, several at a time, each in a process with one thread."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modules.benchmark.transfer.Results import Results
from modules.benchmark.transfer.search import next_rates, rate_of
from modules.benchmark.transfer.Setting import Setting
from modules.benchmark.transfer.tasks import TASKS, Learner

import torch


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
        workers: how many trainings run at a time.
        told: gets each training and its loss.
        until: `time.monotonic()` from which no further training begins; None: never.
        train: in the place of `train_trial`; a function that can be pickled.

    Returns:
        whether all questions are answered.
    """
    open_questions = [question for question in questions if question(results)]
    if not open_questions:
        return True
    # spawned, not forked: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, context, initializer=_prepare, initargs=(folder,)) as pool,
    ):
        running: dict[Future, Trial] = {}
        while True:
            late = until is not None and time.monotonic() > until
            busy = set(running.values())
            waiting = [] if late else _first(open_questions, results, busy, workers - len(running))
            for trial in waiting:
                running[pool.submit(train or train_trial, trial)] = trial
            if not running:
                return not late
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                trial = running.pop(future)
                loss, untrained = future.result()
                results.add_untrained(trial.setting.task, trial.setting.width, untrained)
                results.add(trial.setting, trial.seed, trial.rate, loss)
                told(trial, loss)


def _first(questions: list[Wanted], results: Results, busy: set[Trial], count: int) -> list[Trial]:
    """Up to `count` trainings of the first open questions; answered questions are taken off the list."""
    found: list[Trial] = []
    for question in list(questions):
        if len(found) >= count:
            break
        wanted = question(results)
        if not wanted:
            questions.remove(question)
        found += [trial for trial in wanted if trial not in busy and trial not in found]
    return found[:count]


def _prepare(folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _FOLDER.append(Path(folder) / str(os.getpid()))


# of this process's caches
_FOLDER: list[Path] = []


@cache
def _learner(task: str, width: str) -> Learner:
    return TASKS[task].make(width, _FOLDER[0])


def train_trial(trial: Trial) -> tuple[float, float]:
    """The loss of a training, and that before any."""
    learner = _learner(trial.setting.task, trial.setting.width)
    return learner.train(trial.setting.options(), trial.rate, trial.seed), learner.untrained
