import threading
from collections.abc import Callable

from modules.dataLoader.ReusedMemory import MOST_FREE, ReusedMemory
from modules.dataLoader.TensorCache import TensorCache

from torch import Tensor

Tensors = dict[str, Tensor]


class TensorStore:
    """Encoded images, masks, captions and conditionings: from memory, else from disk, else built.

    What is first fetched stays in memory up to a budget; the rest is read from disk at each use.

    Args:
        cache: where entries are kept on disk; None keeps nothing there.
        memory_budget: bytes of tensors to hold in memory.

    Attributes:
        memory: of what is read from disk, and of batches.
    """

    def __init__(self, cache: TensorCache | None, memory_budget: int) -> None:
        self.cache = cache
        self.memory = cache.memory if cache else ReusedMemory(MOST_FREE)
        self.memory_bytes = 0
        self._memory_budget = memory_budget
        self._memory: dict[tuple[str, str], Tensors] = {}
        self._lock = threading.Lock()

    def fetch(self, kind: str, key: str, build: Callable[[], Tensors]) -> Tensors:
        """The tensors under a key; built, and kept, if they are nowhere. They must not be changed."""
        found = self.find(kind, key)
        return self.add(kind, key, build()) if found is None else found

    def find(self, kind: str, key: str) -> Tensors | None:
        """The tensors under a key, or None."""
        if (found := self._memory.get((kind, key))) is not None:
            return found
        found = self.cache.read(kind, key) if self.cache else None
        if found is not None:
            self._remember(kind, key, found)
        return found

    def has(self, kind: str, key: str) -> bool:
        """Whether there are tensors under a key, as far as that is seen without reading them."""
        return (kind, key) in self._memory or (self.cache is not None and self.cache.contains(kind, key))

    def add(self, kind: str, key: str, tensors: Tensors) -> Tensors:
        """Keeps tensors on disk and, if there is room, in memory."""
        if self.cache:
            self.cache.write(kind, key, tensors)
        self._remember(kind, key, tensors)
        return tensors

    def _remember(self, kind: str, key: str, tensors: Tensors) -> None:
        # what is read from a file lies in one piece of memory, with its header
        storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors.values())}
        size = sum(storages.values())
        with self._lock:
            if self.memory_bytes + size <= self._memory_budget and (kind, key) not in self._memory:
                self._memory[kind, key] = tensors
                self.memory_bytes += size
