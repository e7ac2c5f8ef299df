import queue
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Runs what takes long on threads, and hands the results to whoever polls, so that a window never waits."""

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
                self._results.put(lambda error=error: failed(error))
            else:
                self._results.put(lambda: done(result))

        threading.Thread(target=work, name="window's work", daemon=True).start()

    def poll(self) -> None:
        """Hands over all results that are there, on the caller's thread."""
        while True:
            try:
                deliver = self._results.get_nowait()
            except queue.Empty:
                return
            self._open -= 1
            deliver()
