import contextlib
import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from modules.dataLoader.ReusedMemory import MOST_FREE, ReusedMemory
from modules.util.atomic_file import SAFETENSORS_DTYPES
from modules.util.config.whole_file import replacing
from modules.util.UserError import UserError

import torch
from torch import Tensor

import safetensors.torch

KINDS = ("latents", "masks", "captions", "conditioning", "prompts")
FORMAT = "1"
DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
# those of older versions have no ending of a file in their names
LEFTOVER_NAME = re.compile(r"\.[0-9a-f]{64}(\.safetensors)?\.\d+\.\d+\.tmp")
LARGEST_HEADER = 1 << 20
LEFTOVER_AGE = 3600.0
"""Seconds after which a temporary file cannot belong to a running program."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class TensorCache:
    """Named tensors on disk, one safetensors file an entry: `<directory>/<kind>/<2 digits>/<key>.safetensors`.

    A file is written beside its place and renamed, and carries a checksum. It is verified at the first reading, and
    again if the file has changed since. Whether an entry is there is told by its header and size alone. One that is
    torn, damaged or not ours counts as absent, and is removed when it is read; `warn` is told once.

    Attributes:
        memory: in which entries are read.
    """

    def __init__(self, directory: str | Path, warn: Callable[[str], None]) -> None:
        self.directory = Path(directory)
        self._warn = warn
        self.damaged = 0
        self.memory = ReusedMemory(MOST_FREE)
        # kind -> key -> what the file was when its checksum was verified
        self._verified: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}

    def path(self, kind: str, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.directory / kind / key[:2] / f"{key}.safetensors"

    def read(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, or None if there is no sound one."""
        path = self.path(kind, key)
        try:
            data, state = self._read_whole(path)
            verified = self._verified.setdefault(kind, {})
            tensors = unpack(data, key, verify=verified.get(key) != state)
            verified[key] = state
            return tensors
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell_damage(path, error)
        except ValueError as error:
            self._tell_damage(path, error)
            # its header may be sound, so that the next start would believe it is there
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def contains(self, kind: str, key: str) -> bool:
        """Whether there is an entry, by its header and size alone. Its values are verified when it is read."""
        path = self.path(kind, key)
        try:
            with path.open("rb") as file:
                check_header(file, key)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            self._tell_damage(path, error)
            return False
        return True

    def _tell_damage(self, path: Path, error: Exception) -> None:
        self.damaged += 1
        if self.damaged == 1:
            self._warn(f"{path}: this cached entry is damaged ({error}); it and others like it are built again")

    def is_empty(self, kind: str) -> bool:
        """Whether there are no entries of a kind, sound or not."""
        return next((self.directory / kind).glob("[0-9a-f][0-9a-f]/*"), None) is None

    def _read_whole(self, path: Path) -> tuple[Tensor, int]:
        """The bytes of a file, and what changes when the file does."""
        with path.open("rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            data = self.memory.take(about.st_size)
            place = memoryview(data.numpy())
            while place and (count := file.readinto(place)):
                place = place[count:]
        if place:
            raise ValueError(f"it ended {len(place)} bytes early")
        return data, hash((about.st_ino, about.st_size, about.st_mtime_ns))

    def write(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Adds or replaces an entry in one step.

        Raises:
            UserError: if the disk is full or the folder cannot be written. Other entries stay as they are.
        """
        path = self.path(kind, key)
        data = pack(tensors, key)
        try:
            # an entry that a power cut spoils is noticed, and built again
            with replacing(path, f".{os.getpid()}.{threading.get_ident()}.tmp", durable=False) as file:
                file.write(data)
        except OSError as error:
            raise cache_error(self.directory, error) from None

    def prune(self, keep: Mapping[str, Iterable[str]]) -> tuple[int, int]:
        """Removes the entries of each kind in `keep` whose key is not listed, and old leftovers of killed runs.

        Only files that bear the names of this cache's own are touched.

        Returns:
            number and bytes of the entries removed.
        """
        removed = size = 0
        for kind, keys in keep.items():
            kept = set(keys)
            for path in sorted((self.directory / kind).glob("[0-9a-f][0-9a-f]/*")):
                if not ENTRY_NAME.fullmatch(path.name) or path.stem in kept or path.is_symlink():
                    continue
                with contextlib.suppress(OSError):
                    bytes_freed = path.stat().st_size
                    path.unlink()
                    removed, size = removed + 1, size + bytes_freed
        self._remove_leftovers()
        return removed, size

    def _remove_leftovers(self) -> None:
        for kind in KINDS:
            for path in (self.directory / kind).glob("[0-9a-f][0-9a-f]/.*.tmp"):
                with contextlib.suppress(OSError):
                    if LEFTOVER_NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                        path.unlink()


def cache_error(directory: str | Path, error: OSError) -> UserError:
    """What a person is told when the cache cannot be written."""
    if error.errno in FULL_DISK:
        return UserError(
            f"{directory}: no space left on the disk while caching. What is cached so far is kept: "
            "free some space, or set cache_dir to another disk, and start again"
        )
    return UserError(
        f"{directory}: the cache folder cannot be written ({error.strerror or error}); set cache_dir to another one"
    )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(tensors: Mapping[str, Tensor], key: str) -> bytes:
    """The bytes of a safetensors file with the tensors, their checksum and key."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, {"format": FORMAT, "key": key, "sha256": checksum(plain)})


def unpack(data: Tensor, key: str, *, verify: bool = True) -> dict[str, Tensor]:
    """Reads what `pack` wrote.

    Args:
        data: the bytes, uint8; the tensors lie in it.
        key: of the entry.
        verify: whether the checksum is computed, which takes longer than the rest.

    Raises:
        ValueError: if it is not that, with the reason.
    """
    try:
        length = int.from_bytes(data[:8].numpy().tobytes(), "little")
        header = json.loads(data[8 : 8 + length].numpy().tobytes())
        metadata = header.pop("__metadata__", {})
        values, places = data[8 + length :], [facts["data_offsets"] for facts in header.values()]
        # each begins where another ends
        if sorted([0, *(end for _, end in places)]) != sorted([*(begin for begin, _ in places), len(values)]):
            raise ValueError("its tensors do not fill it")
        tensors = {name: _tensor(values, **facts) for name, facts in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"no sound safetensors file: {error}") from None
    _check_metadata(metadata, key)
    if verify and metadata.get("sha256") != checksum(tensors):
        raise ValueError("wrong checksum")
    return tensors


def check_header(file: BinaryIO, key: str) -> None:
    """Reads the header of what `pack` wrote, and none of the tensors.

    Raises:
        ValueError: if the file is not that or has another size than its header says, with the reason.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    try:
        if length > LARGEST_HEADER:
            raise ValueError("its header has no end")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"no sound safetensors file: {error}") from None
    _check_metadata(metadata, key)
    if size != expected:
        raise ValueError(f"has {size} bytes, expected {expected}")


def _check_metadata(metadata: object, key: str) -> None:
    """Raises ValueError if what a header has as `__metadata__` is not that of an entry."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError("written in another format")
    if metadata.get("key") != key:
        raise ValueError("stored under a wrong name")


def _tensor(values: Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    if not 0 <= begin <= end:
        raise ValueError("a tensor ends before it begins")
    return values[begin:end].view(DTYPES[dtype]).view(shape)
