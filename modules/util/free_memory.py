import contextlib
from pathlib import Path

import psutil

CONTAINER = Path("/sys/fs/cgroup")
# of the two kinds of control groups that containers have: the limit, what is used of it, and the line of memory.stat
# with what of that is cached files, which the system gives up when a program needs memory
LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_memory(container: Path = CONTAINER) -> int:
    """Bytes of RAM that this process may still take, within the limit of its container if that has one.

    Args:
        container: where the system tells of the container.
    """
    free = psutil.virtual_memory().available
    for limit, used, statistics, cached in LIMITS:
        # a container without a limit says "max", others have no such files
        with contextlib.suppress(OSError, ValueError):
            left = int((container / limit).read_text()) - int((container / used).read_text())
            free = min(free, max(0, left + _statistic(container / statistics, cached)))
    return free


def _statistic(path: Path, name: str) -> int:
    """A number of a file with a name and a number in each line; 0 if it is not there."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            found, _, value = line.partition(" ")
            if found == name:
                return int(value)
    return 0
