"""Reads files that may be anything: a pipe that nobody writes to, a device, a file of terabytes."""

import errno
import os
import stat
from pathlib import Path

from modules.util.config.file_kind import mode_kind

UNIT = 1 << 20


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file. It never waits for another program.

    Args:
        path: links are followed.
        most: bytes; a larger file is not read.

    Raises:
        FileNotFoundError: there is nothing of this name.
        OSError: it cannot be read, is no regular file, is a link to nothing, or is too large. `strerror` says which.
    """
    path = os.fspath(path)
    try:
        # before it is opened: opening alone wakes some devices
        _check(os.stat(path), most)
        # it might be another one by now, and opening a pipe waits for who writes to it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if os.path.islink(path):
            raise OSError(errno.ENXIO, "it is a link to a file that is not there") from None
        raise
    except ValueError:
        raise OSError(errno.EINVAL, "its name can't be a path") from None
    with open(descriptor, "rb") as file:
        _check(os.fstat(descriptor), most)
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(len(data), most)
    return data


def is_regular(path: str | Path) -> bool:
    """Whether opening a path gives a file and cannot wait for another program."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _check(found: os.stat_result, most: int) -> None:
    if kind := mode_kind(found.st_mode):
        raise OSError(errno.ENXIO, f"it is {kind}, expected a file")
    if found.st_size > most:
        raise _too_large(found.st_size, most)


def _too_large(size: int, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {size / UNIT:,.1f} MiB, the limit is {most / UNIT:,.0f} MiB")
