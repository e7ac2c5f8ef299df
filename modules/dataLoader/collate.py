"""Tensors of samples to those of a batch. Axes: b samples, n tokens."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import numpy as np

TEXT_MASK = "mask"
"""Name of `[b, n]` among encoded captions: False where a text is filled up to the length of a longer one."""

Allocate = Callable[[int], Tensor]
"""A number of bytes -> `[bytes]`, uint8, of any content."""


def fresh(size: int) -> Tensor:
    """Memory that goes back to the system with the batch. Copies out of it have to wait until they are done."""
    return torch.empty(size, dtype=torch.uint8)


def pinned(size: int) -> Tensor:
    """Memory that a GPU reads while the program goes on. torch gives it to others when the GPU is done with it."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def stack(tensors: Sequence[Tensor], allocate: Allocate) -> Tensor:
    """Tensors of one shape and dtype as one, `[b, ...]`.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    first = tensors[0]
    if others := {(tuple(t.shape), t.dtype) for t in tensors} - {(tuple(first.shape), first.dtype)}:
        raise ValueError(f"tensors of one batch differ: {tuple(first.shape)} of {first.dtype}, and {others}")
    stacked = allocate(len(tensors) * first.nbytes).view(first.dtype).view(len(tensors), *first.shape)
    for row, tensor in zip(stacked, tensors, strict=True):
        # torch would start threads of its own for each thread that copies
        _bytes(row)[:] = _bytes(tensor)
    return stacked


def stack_texts(
    texts: Sequence[Mapping[str, Tensor]],
    empty: Mapping[str, Tensor] | None,
    allocate: Allocate,
    count: int | None = None,
) -> dict[str, Tensor]:
    """Encoded captions as those of a batch, name -> `[b, ...]`, all as long as the longest.

    Args:
        texts: of each caption, name -> tensor.
        empty: the encoded empty caption; needed only if they are `uneven`.
        allocate: gives the memory.
        count: b, the number of those that are in the batch, the first ones; None: all of them.
    """
    if TEXT_MASK in texts[0]:
        longest = max(len(text[TEXT_MASK]) for text in texts)
        texts = [pad_text(text, longest) for text in texts]
    elif uneven(texts):
        texts = [_with_empty_chunks(text, texts, empty) for text in texts]
    return {name: stack([text[name] for text in texts[:count]], allocate) for name in texts[0]}


def uneven(texts: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether captions have different numbers of chunks, so that the shorter ones get empty chunks."""
    return TEXT_MASK not in texts[0] and any(len({text[name].shape for text in texts}) > 1 for name in texts[0])


def pad_text(tensors: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """An encoded caption filled up with zeros to `length` tokens, which its mask then leaves out.

    Args:
        tensors: name -> `[n, ...]`, for each of n tokens; what has one axis and is no mask belongs to the whole text.
        length: at least n.
    """
    missing = length - len(tensors[TEXT_MASK])
    return {
        name: torch.cat([value, value.new_zeros(missing, *value.shape[1:])])
        if missing and (name == TEXT_MASK or value.dim() > 1)
        else value
        for name, value in tensors.items()
    }


def _with_empty_chunks(
    text: Mapping[str, Tensor], texts: Sequence[Mapping[str, Tensor]], empty: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A caption of fewer chunks than others gets empty ones, which are what the empty caption is."""
    padded = dict(text)
    for name, tensor in text.items():
        if len({other[name].shape for other in texts}) > 1:
            most = max(len(other[name]) for other in texts)
            padded[name] = torch.cat([tensor, *[empty[name]] * ((most - len(tensor)) // len(empty[name]))])
    return padded


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
