from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class TrainedSet(Protocol):
    """What a run trains together at one learning rate: a component's adapters or weights, or embeddings.

    Attributes:
        notes: what the user should know about it, one line each.
    """

    notes: Sequence[str]

    def parameters(self) -> list[nn.Parameter]:
        """Every trained tensor once, always in the same order; each carries a `ParameterInfo`."""

    def train(self, mode: bool = True) -> Any:
        """Turns what is random in training, such as dropout, on or off."""

    def eval(self) -> Any:
        """`train(False)`."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Starts or stops its training; it stays in effect."""

    def left_out(self) -> AbstractContextManager[None]:
        """Meanwhile the model works as it did before anything was trained. Not of sets that replace its weights."""

    def state_dict(self) -> dict[str, Tensor]:
        """The raw tensors for resuming, not copied. Keys begin with the set's name in the run and a dot."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, to the bit. Raises UserError if keys or shapes differ."""
