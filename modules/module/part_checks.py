"""What every kind of adapter checks about the tensors that it gets from a file."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from modules.module.AdapterModule import AdapterModule
from modules.util.UserError import UserError

import torch
from torch import Tensor


def check_names(
    adapter: AdapterModule, parts: Mapping[str, Tensor], required: Collection[str], known: Collection[str], kind: str
) -> None:
    """Raises UserError if parts are missing, or if there are some that are unknown to the kind."""
    foreign = sorted(parts.keys() - set(known))
    if foreign:
        raise adapter.part_error(
            f"it holds {', '.join(foreign)}, which is not {kind}. Choose the file's kind of adapter."
        )
    for part in required:
        if part not in parts:
            raise adapter.part_error(f"{part} is missing. The file is incomplete; save it again.")


def rank_of(parts: Mapping[str, Tensor], part: str, axis: int = 0) -> int:
    """The size of a part along the axis of ranks. Raises UserError if there is none."""
    shape = parts[part].shape
    if len(shape) <= axis or not shape[axis]:
        raise UserError(f"{part} has the shape {list(shape)}, expected a matrix. The file is damaged; save it again.")
    return shape[axis]


def number(parts: Mapping[str, Tensor], part: str, default: float) -> float:
    """A part that holds one number, or `default` without it. Raises UserError if it holds more or less."""
    if part not in parts:
        return float(default)
    if parts[part].numel() != 1:
        raise UserError(f"{part} holds {parts[part].numel()} numbers, expected one. Save the adapter again.")
    return float(parts[part].item())


@contextmanager
def for_layer(adapter: AdapterModule) -> Iterator[None]:
    """Names the layer in errors that come up inside."""
    try:
        yield
    except UserError as error:
        raise adapter.part_error(str(error)) from error


def check_rank(adapter: AdapterModule, tensor: Tensor, rank: int, option: str) -> None:
    """Raises UserError if the first axis is not `rank` long."""
    found = tensor.shape[0] if tensor.dim() else 0
    if found != rank:
        raise adapter.part_error(f"its rank is {found}, expected {rank}. Set {option} to {found}.")


def fitted(adapter: AdapterModule, tensor: Tensor, like: Tensor, part: str) -> Tensor:
    """`tensor` in the shape of `like`; trailing ones may come and go, as 1 x 1 convolutions are linear."""
    if without_trailing_ones(tensor.shape) != without_trailing_ones(like.shape):
        raise adapter.part_error(
            f"{part} has the shape {list(tensor.shape)}, expected {list(like.shape)}. "
            "It was made for another base model."
        )
    return tensor.reshape(like.shape)


def without_trailing_ones(shape: torch.Size) -> tuple[int, ...]:
    """The sizes without the ones at the end, but at least two of them."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
