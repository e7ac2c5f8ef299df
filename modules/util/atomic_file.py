"""Files that are either whole or not there: written beside the target, synced, then renamed over it."""

import errno
import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modules.util.config.file_kind import special_kind
from modules.util.config.whole_file import replacing
from modules.util.UserError import UserError

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another place",
    errno.EACCES: "no permission to write there; choose another place or change the permissions",
    errno.EPERM: "no permission to write there; choose another place or change the permissions",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EISDIR: "a folder of this name is in the way; choose another file name",
    errno.ENOTDIR: "a part of the path is a file, expected a folder; choose another place",
    errno.EEXIST: "a part of the path is a file, expected a folder; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def write_bytes(path: str | os.PathLike[str], data: bytes | Iterable[bytes | memoryview]) -> None:
    """Replaces the file at `path` by `data`, creating folders as needed.

    The bytes go to `.<name>.partial` in the same folder and are renamed when they are safely on disk, so that a
    crash or a full disk leaves the old file as it was. A partial file that a killed process left behind is
    overwritten by the next write. One process at a time may write a given file.

    Raises:
        UserError: the file cannot be written, or is a folder, a device or the like; the partial file is removed and
            the old file is untouched.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing to the file that is replaced
    try:
        if kind := special_kind(target):
            raise UserError(f"Cannot write {os.fspath(path)}: it is {kind}, expected a file. Choose another name.")
        with replacing(target, ".partial") as file:
            for chunk in (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data:
                file.write(chunk)
    except OSError as error:
        raise write_failure(path, error) from error


def create_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """`write_bytes` for a path at which nothing stands: what another one has put there meanwhile is not replaced.

    Raises:
        FileExistsError: something stands there, if only a link to nothing.
        UserError: the file cannot be written.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.new")
    write_bytes(beside, data)
    try:
        # gives the whole file its name only where there is none
        os.link(beside, target)
    except FileExistsError:
        raise
    except OSError:
        # a disk without links; Windows does not rename over a file, elsewhere a moment stays in which one could come
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        try:
            os.rename(beside, target)
        except FileExistsError:
            raise
        except OSError as error:
            raise write_failure(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def write_failure(path: str | os.PathLike[str], error: OSError) -> UserError:
    """What to tell a user when writing to `path` failed."""
    cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"Cannot write {os.fspath(path)}: {cause}.")


def write_json(path: str | os.PathLike[str], value: Any, *, sort_keys: bool = False) -> None:
    """`write_bytes` of `value` as indented UTF-8 JSON with a final newline."""
    text = json.dumps(value, indent=4, ensure_ascii=False, sort_keys=sort_keys)
    write_bytes(path, (text + "\n").encode("utf-8"))


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """`write_bytes` of a safetensors file whose bytes depend on nothing but the arguments."""
    write_bytes(path, [safetensors_header(tensors, metadata), *safetensors_data(tensors)])


def safetensors_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and JSON header of a safetensors file.

    The safetensors library keeps metadata in a hash map, whose order differs from process to process; here keys are
    sorted, so that the same content gives the same bytes.

    Raises:
        ValueError: a tensor's dtype has no safetensors name.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = {key: str(metadata[key]) for key in sorted(metadata)}
    offset = 0
    for name in _order(tensors):
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        if tensor.dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"{name}: safetensors cannot hold {tensor.dtype}")
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def safetensors_data(tensors: Mapping[str, Tensor]) -> Iterable[memoryview]:
    """The bytes of all tensors, in the order of the header, one tensor at a time."""
    assert sys.byteorder == "little", "safetensors files are little-endian"
    for name in _order(tensors):
        flat = tensors[name].detach().cpu().contiguous().flatten()
        yield memoryview(flat.view(torch.uint8).numpy())


def safetensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a safetensors file's tensor bytes, that is, of everything after its header."""
    digest = hashlib.sha256()
    for chunk in safetensors_data(tensors):
        digest.update(chunk)
    return digest.hexdigest()


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Wider dtypes first, so that every tensor is aligned to its element; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
