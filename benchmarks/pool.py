"""Runs trainings, several at a time, each in a process with one thread, until all questions are answered."""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch

# a training, and what came of it; both can be pickled
Trial = TypeVar("Trial")
Outcome = TypeVar("Outcome")
# what is still to be trained of one question; none: it is answered
Wanted = Callable[[], Sequence[Trial]]


def answer(
    questions: Sequence[Wanted],
    train: Callable[[Trial], Outcome],
    take: Callable[[Trial, Outcome], None],
    workers: int,
    until: float | None = None,
) -> bool:
    """Answers the questions, the first ones first.

    Args:
        questions: what is wanted; asked again after each training.
        train: a function that can be pickled.
        take: gets each training and what came of it, so that its question wants it no longer.
        workers: how many trainings run at a time; 0: one, in this process, which `train` must not need to be its own.
        until: `time.monotonic()` from which no further training begins; None: never.

    Returns:
        whether all questions are answered.
    """
    open_questions = [question for question in questions if question()]
    if not open_questions:
        return True
    # spawned, not forked: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, context, initializer=_prepare, initargs=(folder,)) if workers else _Here() as pool,
    ):
        running: dict[Future, Trial] = {}
        while True:
            late = until is not None and time.monotonic() > until
            busy = set(running.values())
            waiting = [] if late else _first(open_questions, busy, max(1, workers) - len(running))
            for trial in waiting:
                running[pool.submit(train, trial)] = trial
            if not running:
                return not late
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                take(running.pop(future), future.result())


class _Here(Executor):
    """Does at once what it is given."""

    def submit(self, work: Callable[..., Outcome], /, *args: object) -> Future:
        done: Future = Future()
        done.set_result(work(*args))
        return done


def _first(questions: list[Wanted], busy: set[Trial], count: int) -> list[Trial]:
    """Up to `count` trainings of the first open questions; answered questions are taken off the list."""
    found: list[Trial] = []
    for question in list(questions):
        if len(found) >= count:
            break
        wanted = question()
        if not wanted:
            questions.remove(question)
        found += [trial for trial in wanted if trial not in busy and trial not in found]
    return found[:count]


def _prepare(folder: str) -> None:
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _FOLDER.append(Path(folder) / str(os.getpid()))


def _end_with(parent: BaseProcess) -> None:
    """A pool whose program was killed would train on for as long as it has work, unseen."""
    connection.wait([parent.sentinel])
    os._exit(1)


_FOLDER: list[Path] = []


def cache_folder() -> Path:
    """Of this process alone, removed with the pool; only in a process of a pool."""
    return _FOLDER[0]
