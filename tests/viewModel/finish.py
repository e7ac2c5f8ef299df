import time
from collections.abc import Callable

from modules.viewModel.Worker import Worker


def finish(worker: Worker, done: Callable[[], bool] | None = None) -> None:
    """Hands over results until something is so; without `done`, until nothing is under way."""
    end = time.monotonic() + 30
    while not done() if done is not None else worker.busy:
        assert time.monotonic() < end, "it did not happen in time"
        worker.poll()
        time.sleep(0.001)
