"""Sees every tensor that torch makes, in the backward pass, too."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryProbe(TorchDispatchMode):
    """Records the size of each tensor that an operation returns, but for views of `known` ones.

    Attributes:
        sizes: (elements, operation), in the order in which they came.
        shapes: all that there were.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.sizes: list[tuple[int, str]] = []
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self.sizes.append((tensor.numel(), str(func)))
                self.shapes.add(tensor.shape)
        return result

    def largest(self) -> tuple[int, str]:
        """Elements of the largest tensor, and what made it."""
        return max(self.sizes)
