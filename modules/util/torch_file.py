"""Reading torch files that strangers made: tensors alone, and no more numbers than the file has bytes for."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# what is beside the numbers: names, shapes, the pickle
BESIDE = 1 << 20


def load_torch_file(path: str | Path, mapped: bool = False) -> Any:
    """`torch.load` that runs no code of the file and makes no more of it than it holds.

    Args:
        path: of a regular file.
        mapped: whether tensors stay on disk until they are used, where the format can.

    Raises:
        ValueError: its content is packed, or its tensors have more numbers than it has bytes for: a bomb.
        Exception: whatever torch's loader raises, which is of many kinds.
    """
    size = Path(path).stat().st_size
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as file:
            # torch stores without packing, so that its files can be mapped
            unpacked = sum(entry.file_size for entry in file.infolist())
        if unpacked > size + BESIDE:
            raise ValueError(f"its {size:,} bytes would unpack to {unpacked:,}")
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip)
    for tensor in _tensors(loaded):
        # a tensor may repeat one number without end, which no weight does
        if tensor.layout == torch.strided and not tensor.is_meta:
            held = tensor.untyped_storage().nbytes()
            if tensor.numel() * tensor.element_size() > held:
                raise ValueError(f"a tensor of shape {list(tensor.shape)} stands on {held:,} bytes")
    return loaded


def _tensors(value: Any) -> Iterator[Tensor]:
    # lists may hold one another, or one many times
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
