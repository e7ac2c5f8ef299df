import contextlib
from pathlib import Path

import psutil

CONTAINER = Path("/sys/fs/cgroup")
# of the two kinds of control groups that containers have: the limit and what is used of it
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def free_memory(container: Path = CONTAINER) -> int:
    """Bytes of RAM that this process may still take, within the limit of its container if that has one.

    Args:
        container: where the system tells of the container.
    """
    free = psutil.virtual_memory().available
    for limit, used in LIMITS:
        # a container without a limit says "max", others have no such files
        with contextlib.suppress(OSError, ValueError):
            left = int((container / limit).read_text()) - int((container / used).read_text())
            free = min(free, max(0, left))
    return free
