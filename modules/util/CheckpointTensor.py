from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# (component, name in its state), for example ("unet", "conv_in.weight")
TensorId = tuple[str, str]


class Share(NamedTuple):
    """Some of a tensor's rows, which are counted in `parts` of equal size: from `start` up to `stop`."""

    start: int
    stop: int
    parts: int

    def of(self, tensor: Tensor) -> Tensor:
        """These rows, which share the tensor's memory."""
        rows = len(tensor)
        return tensor[rows * self.start // self.parts : rows * self.stop // self.parts]


THIRDS = (Share(0, 1, 3), Share(1, 2, 3), Share(2, 3, 3))
"""Of three layers that a file holds as one, such as query, key and value."""
HALVES = (Share(0, 1, 2), Share(1, 2, 2))
"""The same of two, such as key and value."""


class Place(Protocol):
    """Where a file holds a tensor of a component.

    Attributes:
        name: in the file.
        share: which rows of that tensor it is; None: all of it.
    """

    name: str
    share: Share | None


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a single-file checkpoint, and how it is made of the tensors of a model.

    Attributes:
        name: in the file.
        sources: the model's tensors, stacked on their rows in this order; none at all: a mark without content.
        transposed: rows and columns are swapped in the file.
        swapped: the first and second half of the rows are exchanged in the file.
        ones: dimensions of size 1 that the file has at the end: of 1 × 1 convolutions that the model has as matrices.
        flat: all rows are one in the file.
    """

    name: str
    sources: tuple[TensorId, ...]
    transposed: bool = False
    swapped: bool = False
    ones: int = 0
    flat: bool = False

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The file's tensor, of those of `sources`."""
        if not tensors:
            return torch.zeros(0)
        whole = torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
        if self.swapped:
            whole = whole.roll(len(whole) // 2, 0)
        if self.transposed:
            whole = whole.T
        if self.flat:
            whole = whole.flatten()
        return whole[(...,) + (None,) * self.ones]


def checkpoint_tensors(
    component: str, names: Iterable[str], place_of: Callable[[str], Place], ones_of: Callable[[str], int] = lambda _: 0
) -> list[CheckpointTensor]:
    """What a file holds of a component: the inverse of the places where its tensors are read from.

    Args:
        component: its name.
        names: of all tensors in its state.
        place_of: name -> place, whose `transposed`, `swapped` or `flat` counts where it has one.
        ones_of: name -> `CheckpointTensor.ones`.

    Raises:
        ValueError: a tensor of the file would lack some of its rows, or be made twice.
    """
    found: dict[str, dict[Share, str]] = {}
    places: dict[str, Place] = {}
    for name in names:
        place = place_of(name)
        share = place.share or Share(0, 1, 1)
        shares = found.setdefault(place.name, {})
        if share in shares:
            raise ValueError(f"{component}.{name} and {shares[share]} have one place, {place.name}")
        shares[share], places[place.name] = name, place
    made = []
    for target, shares in found.items():
        place, ordered = places[target], sorted(shares)
        ends = [0, *(share.stop for share in ordered)]
        if [share.start for share in ordered] != ends[:-1] or ends[-1] != ordered[-1].parts:
            raise ValueError(f"{target} would lack some of its rows: found {', '.join(shares.values())}")
        made.append(
            CheckpointTensor(
                target,
                tuple((component, shares[share]) for share in ordered),
                getattr(place, "transposed", False),
                getattr(place, "swapped", False),
                ones_of(shares[ordered[0]]),
                getattr(place, "flat", False),
            )
        )
    return made
