"""Which processes use a cache, so that none removes what another is about to read."""

import contextlib
import os
import uuid
from collections.abc import Collection
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
        # in containers that share a disk, processes have the same number
        name = f"{os.getpid()}-{uuid.uuid4().hex}{SUFFIX}"
        lock = FileLock(str(directory / FOLDER / name), fallback_to_soft=False)
        lock.acquire(timeout=0)
        _HELD[directory] = lock


def other_users(directory: Path, besides: Collection[int] = ()) -> list[int]:
    """Process ids of the others that use a cache, but for some. What killed ones have left is removed."""
    directory = Path(os.path.realpath(directory))
    found = []
    for path in sorted((directory / FOLDER).glob(f"*{SUFFIX}")):
        number, _, mark = path.stem.partition("-")
        own = directory in _HELD and path.name == Path(_HELD[directory].lock_file).name
        if own or not number.isdecimal() or not mark:
            continue
        lock = FileLock(str(path), fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found += [int(number)] if int(number) not in besides else []
            continue
        except (OSError, NotImplementedError):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
    return found
