import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryProbe(TorchDispatchMode):
    """While it is open, follows every tensor that an operation makes until its memory is given back.

    What a kernel needs inside and frees again is not seen.

    Attributes:
        held: bytes of tensors that were made since it was opened and are still there.
        peak: most bytes that were held at once.
        largest: elements of the largest tensor that was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.largest, self.held = 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # memory of the arguments is none of the operation's
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, given)
        return result

    def _see(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in given or key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        self.largest = max(self.largest, tensor.numel())
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size
