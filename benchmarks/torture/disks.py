"""A full disk and one that can't be written, while caching, backing up, saving and sampling: nothing is lost.

The small disk is a file system in memory that only the run's own process sees, which needs a Linux that lets a user
make one. Where that is not so, the trial says that it was not tried.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.ForkedRun import ForkedRun, has_traceback, train_script
from benchmarks.torture.MiniatureRun import MiniatureRun

CACHE, BACKUP, SAVE, SAMPLE = PLACES = ("cache", "backup", "save", "sample")
FULL, READ_ONLY = TROUBLES = ("full", "read-only")
# of Linux's unshare and mount
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
NOT_TRIED = 77
# what a run may still write there, in KiB; less than any of the four wants
ROOM = 8


@dataclass(frozen=True)
class DiskTrial:
    """What came of a run whose disk failed it.

    Attributes:
        place: where it wrote.
        trouble: one of `TROUBLES`.
        tried: whether this system could make such a disk.
        told: the lines that told of it.
        finished: whether the run went on to its end all the same, as it may where samples fail.
        same: whether, with room again, the run that is continued ends in the bytes of one without trouble.
        traceback: whether anything printed one.
    """

    place: str
    trouble: str
    tried: bool
    told: tuple[str, ...] = ()
    finished: bool = False
    same: bool = False
    traceback: bool = False

    @property
    def clean(self) -> bool:
        """Whether the user was told in words, and lost nothing."""
        return self.tried and bool(self.told) and self.same and not self.traceback


def disk_trial(root: Path, base: Path, images: Path, place: str, trouble: str) -> DiskTrial:
    """Trains with a disk that fails in one place, then with one that does not."""
    whole, run = (MiniatureRun(root / name, base, images, {"epochs": 2}) for name in ("whole", "run"))
    whole.finish_undisturbed()
    folder = {
        CACHE: run.cache, BACKUP: run.workspace / "backup", SAVE: run.output.parent, SAMPLE: run.workspace / "samples",
    }[place]  # fmt: skip
    kept = root / "kept"
    forked = ForkedRun(lambda: _on_small_disk(folder, kept, trouble, train_script(run.config)), run.log)
    status = forked.wait(300)
    if status is None:
        forked.kill()
        raise RuntimeError(f"a {trouble} disk at {place}: no end in 300 s\n{run.words()}")
    if status == NOT_TRIED:
        return DiskTrial(place, trouble, tried=False)
    told = tuple(line for line in run.words().splitlines() if _tells(line))
    # what was written there before the disk failed is there again
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    again = run.finish("continue_last_backup=true")
    same = again == 0 and run.digest() == whole.digest() != ""
    return DiskTrial(place, trouble, True, told, status == 0, same, has_traceback(run.words()))


def _tells(line: str) -> bool:
    words = ("disk is full", "no space left", "read-only", "cannot be written", "can't be written", "samples of step")
    return line.startswith(("error:", "warning:")) and any(word in line.lower() for word in words)


def _on_small_disk(folder: Path, kept: Path, trouble: str, work: Callable[[], None]) -> None:
    """Puts a small or read-only disk at a folder, for this process alone, and works; keeps what was written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _mounted(folder, f"size={ROOM}k" if trouble == FULL else "ro,size=1m"):
        sys.exit(NOT_TRIED)
    try:
        work()
    finally:
        shutil.copytree(folder, kept, dirs_exist_ok=True)


def _mounted(folder: Path, options: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = NEW_MOUNTS if os.geteuid() == 0 else NEW_MOUNTS | NEW_USER
    if not hasattr(libc, "unshare") or libc.unshare(flags):
        return False
    read_only, private = 1, 1 << 18 | 1 << 14
    # mounts of a new namespace may still be told to the old one
    libc.mount(b"none", b"/", None, private, None)
    flags = read_only if options.startswith("ro") else 0
    data = options.removeprefix("ro,").encode()
    return libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, data) == 0 or ctypes.get_errno() == errno.EBUSY
