"""Files that are either whole or not there: written beside the target, synced, then renamed over it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(
    target: Path, beside: str, *, durable: bool = True, opener: Callable[[str, int], int] | None = None
) -> Iterator[BinaryIO]:
    """Opens a file that becomes `target` in one step when the block ends; folders are made as needed.

    If the block or the disk fails, the file beside is removed and the old one is untouched. One that a killed process
    left behind is written over by the next that takes the same name.

    Args:
        target: the path itself; who wants links to be followed resolves them first.
        beside: what the name of the file beside ends with; with the number of the process in it, several may write.
        durable: whether the bytes and the new name are safely on disk afterwards, which takes a while.
        opener: as of `open`.

    Raises:
        OSError: the file can't be written.
    """
    partial = target.with_name(f".{target.name}{beside}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # outside of what cleans up: where it fails, what is there is another writer's
    opened = open(partial, "wb", opener=opener)
    try:
        with opened as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename itself durable. The file is complete by now, so a system that can't do this is no error."""
    # Windows can't open folders
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
