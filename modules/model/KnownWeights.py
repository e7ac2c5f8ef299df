import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from modules.util.config.whole_file import replacing

import torch
from torch import nn

import diffusers
import safetensors
import transformers

FILE_NAME = "known_weights.json"
LOADING = 1
"""To be raised when components get other weights from the same files than before."""

EDGE = 1 << 16
"""Bytes at both ends of a file that are read to know it again. The header of safetensors is at the start."""

COARSE, UNSETTLED = 10**7, 2 * 10**9
"""Nanoseconds: file systems whose times are multiples of the first may give two versions of a file the same time if
both were written within the second."""

MOST = 1000
FINGERPRINT = re.compile(r"[0-9a-f]{64} [\w.]{1,40}")
SOURCE = re.compile(r"[0-9a-f]{64}")


class KnownWeights:
    """Remembers the fingerprints of loaded weights, so that a component need not be loaded to name it in a cache.

    What is remembered is found again by `files_digest`. A list that is missing, damaged or can't be written costs
    only the time to load and hash a component.

    Args:
        directory: the cache folder; None remembers nothing.
    """

    def __init__(self, directory: str | Path | None) -> None:
        self._path = None if directory is None else Path(directory) / FILE_NAME

    def __bool__(self) -> bool:
        """Whether anything is remembered at all."""
        return self._path is not None

    def find(self, source: str | None) -> str | None:
        """The fingerprint of what was loaded from a source, see `files_digest`; None if it is not known."""
        return None if source is None else self._read().get(source)

    def remember(self, source: str | None, fingerprint: str) -> None:
        """Keeps a fingerprint for the next run."""
        if source is None or self._path is None:
            return
        known = {**self._read(), source: fingerprint}
        # the oldest come first
        kept = dict(list(known.items())[-MOST:])
        with contextlib.suppress(OSError), replacing(self._path, f".{os.getpid()}.tmp", durable=False) as file:
            file.write(json.dumps(kept, indent=1).encode())

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            return {key: text for key, text in data.items() if SOURCE.fullmatch(key) and FINGERPRINT.fullmatch(text)}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}


def files_digest(files: Iterable[Path], settings: Iterable[object]) -> str | None:
    """Names what is loaded from files with settings. No file is read as a whole.

    Each file counts with its path, size, times, and its first and last 64 KiB; so do the versions of the libraries.

    Args:
        files: all that a component is loaded from.
        settings: all else that its weights depend on.

    Returns:
        64 hexadecimal digits; None if there are no files, one can't be read, or one may have another version of the
        same time.
    """
    libraries = [module.__version__ for module in (torch, diffusers, transformers, safetensors)]
    try:
        known = [_known_of(path) for path in files]
    except OSError:
        return None
    if not known or None in known:
        return None
    text = json.dumps([LOADING, libraries, known, [str(setting) for setting in settings]])
    return hashlib.sha256(text.encode()).hexdigest()


def hash_weights(module: nn.Module) -> str:
    """sha256 over the names, formats, shapes and values of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _known_of(path: Path) -> list[object] | None:
    """What tells a version of a file from others; None if its time does not."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(EDGE))
        file.seek(max(0, facts.st_size - EDGE))
        digest.update(file.read(EDGE))
    if facts.st_mtime_ns % COARSE == 0 and 0 <= time.time_ns() - facts.st_mtime_ns < UNSETTLED:
        return None
    return [os.path.abspath(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, digest.hexdigest()]
