import threading
import weakref
from collections import defaultdict

import torch
from torch import Tensor

SMALLEST = 1 << 18
"""Bytes; smaller pieces are used again by the allocator itself."""

UNIT = 1 << 16
"""Bytes; sizes are rounded up to multiples, so that pieces of nearly the same size take each other's place."""


MOST_FREE = 1 << 28
"""Bytes of unused memory that the data room holds: a few batches, whose parts are given back and taken in turn."""


class ReusedMemory:
    """Memory that is used again as soon as no tensor lies in it any more.

    The system gives large fresh memory page by page, at the first touch, which takes several times as long as reading a
    file that the system has at hand.

    Args:
        most_free: bytes of unused memory to hold; what is more goes back to the system.
    """

    def __init__(self, most_free: int) -> None:
        self._most_free, self._free_bytes = most_free, 0
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        # a tensor may die, and give its memory back, while this thread is in `take`
        self._lock = threading.RLock()

    def take(self, size: int) -> Tensor:
        """`[size]` bytes, uint8, of any content. May be called from any thread."""
        if size < SMALLEST:
            return torch.empty(size, dtype=torch.uint8)
        whole = -(-size // UNIT) * UNIT
        with self._lock:
            base = self._free[whole].pop() if self._free[whole] else None
            self._free_bytes -= whole if base is not None else 0
        if base is None:
            base = torch.empty(whole, dtype=torch.uint8)
        # tensors that are made from the array keep it alive
        array = base.numpy()
        weakref.finalize(array, self._give_back, base).atexit = False
        return torch.from_numpy(array)[:size]

    def _give_back(self, base: Tensor) -> None:
        with self._lock:
            if self._free_bytes + len(base) <= self._most_free:
                self._free_bytes += len(base)
                self._free[len(base)].append(base)
