"""Fills the store: files are read ahead in threads, the model encodes, and what it gives is written behind."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from modules.dataLoader.Entry import Entry
from modules.dataLoader.progress import Progress, track

Item, Result = TypeVar("Item"), TypeVar("Result")
MOST_WAITING = 4
"""Entries that may wait to be written while the model encodes more."""


def encode_missing(
    entries: Iterable[Entry], total: int, stage: str, threads: int, progress: Progress | None = None
) -> None:
    """Encodes the entries that their store lacks, one at a time and in order.

    However it ends, what the model has encoded is written, unless writing fails.

    Args:
        entries: made as they are needed.
        total: how many there are.
        stage: what they are called in progress.
        threads: that read and render.
        progress: is told how many are done.

    Raises:
        UserError: if a file changed, an encoded value is not finite, or the cache can't be written.
    """

    pool = ThreadPoolExecutor(threads, "data")
    try:
        with _writing_behind() as write:
            looked_for = map_ahead(pool, lambda entry: (entry, entry.look()), entries, 2 * threads)
            for entry, stored in track(looked_for, total, stage, progress):
                if not stored:
                    write(entry.keep, entry.encoded())
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _writing_behind() -> Iterator[Callable[..., None]]:
    """Gives a function that calls others in one thread, in order. What fails is raised at a later call or the end."""
    waiting: deque[Future] = deque()

    def write(function: Callable[..., object], *arguments: object) -> None:
        while waiting and (len(waiting) >= MOST_WAITING or waiting[0].done()):
            waiting.popleft().result()
        waiting.append(pool.submit(function, *arguments))

    with ThreadPoolExecutor(1, "cache") as pool:
        yield write
        for future in waiting:
            future.result()


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in the order of `items`, computed by the pool, at most `ahead` of them in advance."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
