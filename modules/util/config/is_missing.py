import os
from pathlib import Path


def is_missing(path: str | Path) -> bool:
    """Whether there is certainly nothing at a path; False where that can't be found out."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        pass
    return False
