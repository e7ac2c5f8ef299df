"""OFT whose trained numbers are divided by the root of their count, inside OneTrainer's own rotation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# a backup holds trained numbers, and this beside them; any other file holds what rotations are made of
MARKER, THEIRS = "scaled_oft_elements", "scaled_oft"
_EXPORTING: ContextVar[bool] = ContextVar("exporting", default=False)


def row_scale(block_size: int) -> float:
    """What OneTrainer's own scaled form multiplies by, 1/(2√(b−1)); 1 for blocks of 1, which hold no numbers."""
    return 0.5 / math.sqrt(block_size - 1) if block_size > 1 else 1.0


@contextmanager
def exporting() -> Iterator[None]:
    """State that is read inside is for a file of an adapter: the numbers that rotations are made of."""
    before = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(before)


@cache
def elements_rotation(kind: type[nn.Module]) -> type[nn.Module]:
    """OneTrainer's rotation in the ELEMENTS form: effective weight = w/√n for the n = b(b−1)/2 numbers of a block.

    Args:
        kind: its `OFTRotationModule`.
    """

    class ElementsRotation(kind):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.elements_scale = 1 / math.sqrt(max(1, self.n_elements))
            self.register_buffer(MARKER, torch.tensor(True))

        def _cayley_batch(self, Q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super()._cayley_batch(Q * self.elements_scale, *args, **kwargs)

        def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            if _EXPORTING.get():
                del destination[prefix + MARKER]
                weight = destination[prefix + "weight"]
                destination[prefix + "weight"] = (weight.float() * self.elements_scale).to(weight.dtype)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
            weight, marker = state_dict.get(prefix + "weight"), state_dict.get(prefix + MARKER)
            if weight is not None and marker is None:
                # a file: what rotations are made of, or what OneTrainer divides by itself
                state_dict = dict(state_dict)
                theirs = state_dict.pop(prefix + THEIRS, None)
                row = 1.0 if theirs is None else row_scale(self.block_size)
                state_dict[prefix + "weight"] = (weight.float() * (row / self.elements_scale)).to(weight.dtype)
                state_dict[prefix + MARKER] = torch.tensor(True)
            super()._load_from_state_dict(state_dict, prefix, *args)

    return ElementsRotation
