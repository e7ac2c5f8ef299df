import gc
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

# seconds for which a thread of Python keeps others waiting: as Python has it, and while one of a worker computes
TURN, SHORT_TURN = sys.getswitchinterval(), 0.0005


class Worker:
    """Runs what takes long on threads, and hands the results to whoever polls, so that a window never waits.

    Python collects garbage on whatever thread makes the next object. A closed window is garbage of which Tk has to be
    told, and Tk lets another thread wait for that until its own is back in its loop, a second for each variable. So
    nothing is collected on a thread of this: meanwhile `poll` does it.

    A thread that computes keeps Python's lock for 5 ms at a time, and each call into Tk has to get it anew: a plot of
    some hundred lines would take a second. So meanwhile the lock changes hands more often.
    """

    _threads = 0
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open = 0

    @property
    def busy(self) -> bool:
        """Whether something is under way or its result has not been handed over."""
        return self._open > 0

    def run(
        self, function: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]
    ) -> None:
        """Calls `function` on a thread of its own; `poll` will call `done` with the result or `failed`."""
        self._open += 1

        def work() -> None:
            try:
                result = function()
            except Exception as error:
                deliver = partial(failed, error)
            else:
                deliver = partial(done, result)
            finally:
                # first: whoever has the result may rely on the thread's end
                self._count(-1)
            self._results.put(deliver)

        self._count(1)
        threading.Thread(target=work, name="window's work", daemon=True).start()

    def poll(self) -> None:
        """Hands over all results that are there, on the caller's thread."""
        if self._threads:
            _collect_what_is_due()
        while True:
            try:
                deliver = self._results.get_nowait()
            except queue.Empty:
                return
            self._open -= 1
            deliver()

    @staticmethod
    def _count(change: int) -> None:
        with Worker._lock:
            Worker._threads += change
            if Worker._threads:
                gc.disable()
                sys.setswitchinterval(SHORT_TURN)
            else:
                gc.enable()
                sys.setswitchinterval(TURN)


def _collect_what_is_due() -> None:
    """What Python would do by itself: the oldest generation whose count is past its threshold."""
    counts, thresholds = gc.get_count(), gc.get_threshold()
    due = [generation for generation in range(3) if counts[generation] > thresholds[generation] > 0]
    if due:
        gc.collect(due[-1])
