import json
import os
from pathlib import Path

from modules.run.RunProcess import find_process

import psutil

LOCK = "window.json"


def take_window(folder: Path) -> int:
    """Notes that this process is the one that works in a folder, as long as it runs.

    Two windows would overwrite each other's queue, settings and tokens.

    Returns:
        The number of another process that works there already; 0 if none does.

    Raises:
        OSError: the note can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    if owner := _owner(path):
        return owner
    # of a window that was killed
    path.unlink(missing_ok=True)
    me = psutil.Process()
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump({"pid": me.pid, "born": me.create_time()}, file)
    except FileExistsError:
        # another one was quicker
        return _owner(path)
    return 0


def _owner(path: Path) -> int:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        process = find_process(known["pid"], known["born"])
        works = process is not None and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, TypeError, KeyError, psutil.Error):
        return 0
    return process.pid if works and process.pid != os.getpid() else 0
