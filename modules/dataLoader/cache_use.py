"""Which processes use a cache, so that none removes what another is about to read."""

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER, SUFFIX = "runs", ".lock"
# of this process, until it ends; the system gives them free, also after a kill
_HELD: dict[Path, FileLock] = {}


def use_cache(directory: Path) -> None:
    """Tells others that this process uses a cache. Nothing happens where the file system has no locks."""
    directory = Path(os.path.realpath(directory))
    if directory in _HELD:
        return
    with contextlib.suppress(OSError, NotImplementedError, Timeout):
        (directory / FOLDER).mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(directory / FOLDER / f"{os.getpid()}{SUFFIX}"))
        lock.acquire(timeout=0)
        _HELD[directory] = lock


def other_users(directory: Path) -> list[int]:
    """Process ids of the others that use a cache. What killed ones have left is removed."""
    directory = Path(os.path.realpath(directory))
    found = []
    for path in sorted((directory / FOLDER).glob(f"*{SUFFIX}")):
        if path.stem == str(os.getpid()) or not path.stem.isdecimal():
            continue
        lock = FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(int(path.stem))
            continue
        except (OSError, NotImplementedError):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
    return found
