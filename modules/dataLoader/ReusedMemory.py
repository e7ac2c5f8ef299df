import threading
import weakref
from collections import OrderedDict

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
        most_free: bytes of unused memory to hold. What is more goes back to the system, pieces of the size that was not
            asked for or given back for the longest time first.
    """

    def __init__(self, most_free: int) -> None:
        self._most_free, self._free_bytes = most_free, 0
        # size -> pieces, the size that was used last at the end
        self._free: OrderedDict[int, list[Tensor]] = OrderedDict()
        # a tensor may die, and give its memory back, while this thread is in `take`
        self._lock = threading.RLock()

    def take(self, size: int) -> Tensor:
        """`[size]` bytes, uint8, of any content. May be called from any thread."""
        if size < SMALLEST:
            return torch.empty(size, dtype=torch.uint8)
        whole = -(-size // UNIT) * UNIT
        with self._lock:
            base = self._pop(whole)
            self._touch(whole)
        if base is None:
            base = torch.empty(whole, dtype=torch.uint8)
        # tensors that are made from the array keep it alive
        array = base.numpy()
        weakref.finalize(array, self._give_back, base).atexit = False
        return torch.from_numpy(array)[:size]

    def _give_back(self, base: Tensor) -> None:
        size = len(base)
        if size > self._most_free:
            return
        with self._lock:
            self._touch(size)
            while self._free_bytes + size > self._most_free:
                oldest = next(iter(self._free))
                if oldest == size:
                    return
                self._pop(oldest)
            self._free_bytes += size
            self._free.setdefault(size, []).append(base)

    def _pop(self, size: int) -> Tensor | None:
        """A free piece, which is then held no more; None if there is none."""
        pieces = self._free.get(size)
        if not pieces:
            return None
        piece = pieces.pop()
        self._free_bytes -= size
        if not pieces:
            self._free.pop(size, None)
        return piece

    def _touch(self, size: int) -> None:
        if size in self._free:
            self._free.move_to_end(size)
