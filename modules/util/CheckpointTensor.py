from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# (component, name in its state), for example ("unet", "conv_in.weight")
TensorId = tuple[str, str]


class Place(Protocol):
    """Where a file holds a tensor of a component.

    Attributes:
        name: in the file.
        third: which third of that tensor's rows it is; None: all of it.
    """

    name: str
    third: int | None


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a single-file checkpoint, and how it is made of the tensors of a model.

    Attributes:
        name: in the file.
        sources: the model's tensors, stacked on their rows in this order; none at all: a mark without content.
        transposed: rows and columns are swapped in the file.
        swapped: the first and second half of the rows are exchanged in the file.
        ones: dimensions of size 1 that the file has at the end: of 1 × 1 convolutions that the model has as matrices.
    """

    name: str
    sources: tuple[TensorId, ...]
    transposed: bool = False
    swapped: bool = False
    ones: int = 0

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The file's tensor, of those of `sources`."""
        if not tensors:
            return torch.zeros(0)
        whole = torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
        if self.swapped:
            whole = whole.roll(len(whole) // 2, 0)
        if self.transposed:
            whole = whole.T
        return whole[(...,) + (None,) * self.ones]


def checkpoint_tensors(
    component: str, names: Iterable[str], place_of: Callable[[str], Place], ones_of: Callable[[str], int] = lambda _: 0
) -> list[CheckpointTensor]:
    """What a file holds of a component: the inverse of the places where its tensors are read from.

    Args:
        component: its name.
        names: of all tensors in its state.
        place_of: name -> place, whose `transposed` or `swapped` counts where it has one.
        ones_of: name -> `CheckpointTensor.ones`.

    Raises:
        ValueError: a tensor of the file would lack a third, or be made twice.
    """
    found: dict[str, dict[int, str]] = {}
    places: dict[str, Place] = {}
    for name in names:
        place = place_of(name)
        thirds = found.setdefault(place.name, {})
        if (place.third or 0) in thirds:
            raise ValueError(f"{component}.{name} and {thirds[place.third or 0]} have one place, {place.name}")
        thirds[place.third or 0], places[place.name] = name, place
    made = []
    for target, thirds in found.items():
        place = places[target]
        if sorted(thirds) != ([0] if place.third is None else [0, 1, 2]):
            raise ValueError(f"{target} would lack a third: found {', '.join(thirds.values())}")
        made.append(
            CheckpointTensor(
                target,
                tuple((component, thirds[third]) for third in sorted(thirds)),
                getattr(place, "transposed", False),
                getattr(place, "swapped", False),
                ones_of(thirds[0]),
            )
        )
    return made
