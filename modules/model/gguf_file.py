"""Files in GGUF, in which people share quantized transformers: their names, shapes, and tensors as plain numbers.

Numbers come out as the package of the format's authors computes them. Which layer a tensor belongs to is a matter of
its name, as in other files.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor

# what the reader raises for a file that is cut or none of its kind
READ_ERRORS = (OSError, ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError)
# converters for ComfyUI note by it which shape a tensor has that is stored in another one
_SHAPE = "comfy.gguf.orig_shape."


class GgufFile:
    """The tensors of one file.

    Raises (all methods): one of `READ_ERRORS`, or NotImplementedError for a number format that the package can't read.
    """

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shapes = {name: self._shape(tensor) for name, tensor in self._tensors.items()}

    def _shape(self, tensor: ReaderTensor) -> tuple[int, ...]:
        field = self._reader.fields.get(f"{_SHAPE}{tensor.name}")
        if field is not None:
            return tuple(int(field.parts[place][0]) for place in field.data)
        # the innermost side comes first
        return tuple(int(side) for side in tensor.shape[::-1])

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each of these names: float32, or the 16 bits in which they are stored."""
        for name in names:
            yield name, _numbers(self._tensors[name]).reshape(self.shapes[name])


def _numbers(tensor: ReaderTensor) -> Tensor:
    kind = tensor.tensor_type
    # copies: the file's memory can't be written to
    if kind == GGMLQuantizationType.BF16:
        return torch.from_numpy(np.array(tensor.data).view(np.int16)).view(torch.bfloat16)
    if kind in (GGMLQuantizationType.F16, GGMLQuantizationType.F32):
        return torch.from_numpy(np.array(tensor.data))
    return torch.from_numpy(np.ascontiguousarray(gguf.dequantize(tensor.data, kind)))
