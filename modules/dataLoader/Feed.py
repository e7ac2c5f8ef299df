import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from modules.dataLoader.Batch import Batch
from modules.dataLoader.collate import fresh, pinned
from modules.dataLoader.PendingBatch import PendingBatch
from modules.dataLoader.plan import PlannedBatch
from modules.dataLoader.TrainingData import TrainingData

import torch

MOST_AHEAD = 8
"""Batches that are read ahead where they are small: more bridge longer pauses of a disk."""

AHEAD_BYTES = 1 << 29
"""What all of them together may take. One more than there are threads is read ahead in any case."""


class Feed:
    """Batches by their number, read ahead in threads, so that a step finds its batch ready.

    Threads plan, read, check, decode, render and join. What a model has to encode is encoded in `batch`. The numbers in
    a batch do not depend on threads. An error of a thread is raised by `batch` for the batch that it belongs to.

    Args:
        data: that is read.
        planned: number -> samples, None for a number that is never asked for; called in threads.
        end: number of the batch behind the last one.
        threads: at least 1.
        device: where batches are used. For CUDA they lie in pinned memory.
        stride: of so many numbers about one is asked for.

    Attributes:
        waited: seconds in which `batch` has waited for threads, so far. Encoding does not count.
    """

    def __init__(
        self,
        data: TrainingData,
        planned: Callable[[int], PlannedBatch | None],
        end: int,
        threads: int,
        device: torch.device,
        stride: int = 1,
    ) -> None:
        self._data, self._planned, self._end, self._threads = data, planned, end, threads
        self._stride = stride
        # only on a CPU nothing reads a batch any more when it is gone
        self._allocate = {"cpu": None, "cuda": pinned}.get(device.type, fresh)
        self._pool: ThreadPoolExecutor | None = None
        # number and future of each batch that is read ahead, in order
        self._ahead: deque[tuple[int, Future[PendingBatch | None]]] = deque()
        self._most_ahead = threads + 1
        self._closed = False
        self.waited = 0.0

    def batch(self, number: int) -> Batch:
        """A batch. Each call is best followed by the one with the next number that is planned.

        Raises:
            UserError: if a file that has to be read again has changed, or the model encodes it to what is not finite.
        """
        while self._ahead and self._ahead[0][0] < number:
            self._ahead.popleft()[1].cancel()
        if self._ahead and self._ahead[0][0] != number:
            self._forget()
        self._read_ahead(number)
        future = self._ahead.popleft()[1]
        started = time.perf_counter()
        try:
            pending = future.result()
        finally:
            self.waited += time.perf_counter() - started
        assert pending is not None, f"batch {number} is none of this process"
        # while the model encodes or trains, threads go on
        self._read_ahead(number + 1)
        needs_model, size = not pending.joined, max(1, pending.nbytes)
        batch = pending.finish()
        if needs_model:
            self._data.rest_model()
        self._most_ahead = max(self._threads + 1, min(MOST_AHEAD, AHEAD_BYTES // size))
        return batch

    def close(self) -> None:
        """Ends the threads; what they read is dropped."""
        self._closed = True
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read_ahead(self, number: int) -> None:
        if self._pool is None:
            # the first names in the cache may ask the model for its fingerprint, and models belong to this thread
            self._data.pending(self._planned(number))
            self._pool = ThreadPoolExecutor(self._threads, "data")
        first = number + len(self._ahead)
        for later in range(first, min(number + self._most_ahead * self._stride, self._end)):
            self._ahead.append((later, self._pool.submit(self._read, later)))

    def _read(self, number: int) -> PendingBatch | None:
        planned = self._planned(number)
        if planned is None:
            return None
        pending = self._data.pending(planned, self._allocate)
        pending.read(lambda: not self._closed)
        return pending

    def _forget(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
