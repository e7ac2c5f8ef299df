"""The tensors of a file from anywhere: safetensors, or a torch file of tensors alone. No code of a file runs."""

import os

from modules.util.config.file_kind import special_kind
from modules.util.torch_file import load_torch_file
from modules.util.UserError import UserError

import torch
from torch import Tensor

from safetensors import SafetensorError, safe_open

# zip, which torch writes, and pickle, which it wrote long ago
_TORCH_STARTS = (b"PK", b"\x80")


def read_tensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata.

    Raises:
        UserError: the file is missing, is none (a folder, a pipe, a device), is damaged, or holds more than tensors.
    """
    _check_regular(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: _tensor(file, key, path) for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        pickled = _read_pickle(path)
        if pickled is not None:
            return pickled, {}
        # a safetensors file may start with the same byte, but its ninth opens the header
        start = _start(path)
        if start.startswith(_TORCH_STARTS) and not start.endswith(b"{"):
            raise UserError(
                f"{path}: a torch file (pickle) that is damaged or holds more than tensors, so that loading it could "
                "run foreign code. It was not loaded; get the adapter as a safetensors file."
            ) from error
        raise UserError(
            f"{path}: not a complete safetensors file ({_one_line(error)}). "
            "It may have been cut off; copy, download or save it again."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


def unusual(tensor: Tensor) -> str | None:
    """What a tensor of a torch file is, if its numbers can't be used as they are, for example "a sparse"; else None."""
    if tensor.is_meta:
        return "an empty"
    if tensor.is_quantized:
        return "a quantized"
    return "a sparse or nested" if tensor.layout != torch.strided or tensor.is_nested else None


def _check_regular(path: str) -> None:
    """A pipe or a device would be waited for without end."""
    if kind := special_kind(path):
        raise UserError(f"{path}: {kind}, no file. Expected an adapter in safetensors format.")
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file. Expected an adapter in safetensors format.")


def _tensor(file: safe_open, key: str, path: str) -> Tensor:
    try:
        return file.get_tensor(key)
    # what the header promises can be more than the machine has, or a number format that torch lacks
    except (SafetensorError, MemoryError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"{path}: {key} cannot be read: {_one_line(error)}. Get the file again.") from error


def _read_pickle(path: str) -> dict[str, Tensor] | None:
    """The tensors of a torch file, if it holds tensors alone; None for anything else. Runs no code of the file's.

    Raises:
        UserError: tensors that have no names, or no numbers.
    """
    try:
        loaded = load_torch_file(path)
    except Exception:  # whatever a foreign file makes the loader raise, the answer is: not readable
        return None
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        return None
    for key, tensor in loaded.items():
        if not isinstance(key, str):
            raise UserError(
                f"{path}: a torch file whose tensors have no names: found {key!r} ({type(key).__name__}) in place of "
                "one. Expected an adapter, whose tensors are named after layers."
            )
        if (kind := unusual(tensor)) is not None:
            raise UserError(f"{path}: {key} is {kind} tensor, expected a plain one. Save the adapter as safetensors.")
    return {key: tensor.detach() for key, tensor in loaded.items()}


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(9)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
