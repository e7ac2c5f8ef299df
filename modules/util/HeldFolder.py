import contextlib
import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from modules.util.UserError import UserError

from filelock import FileLock, Timeout

LOCK, HOLDER = "run.lock", "run-holder.json"


class HeldFolder:
    """A folder that one process works in. The system itself ends the hold when that process ends, also by a kill.

    Args:
        folder: made if it is not there.
        key: the option that names it, for messages.
        remedy: what a user may do instead, a sentence.
        warn: is told where nothing can be locked.

    Raises:
        UserError: another process holds it; named as far as it said who it is.
    """

    def __init__(self, folder: Path, key: str, remedy: str, warn: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(str(folder / LOCK), fallback_to_soft=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{key}: {folder} is used by another run{self._holder()}. {remedy}") from None
        except (NotImplementedError, OSError) as error:
            # a file system without locks, as some network disks, or another user's file: the run is more than its lock
            reason = getattr(error, "strerror", None) or str(error) or "its disk has no locks"
            warn(f"{key}: {folder} can't be locked ({reason}), so that nothing keeps another run out of it.")
            return
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        with contextlib.suppress(OSError):
            (folder / HOLDER).write_text(json.dumps(about) + "\n", encoding="utf-8")

    def _holder(self) -> str:
        try:
            about = json.loads((self.folder / HOLDER).read_text(encoding="utf-8"))
            return f" (process {about['pid']} on {about['host']}, since {about['since']})"
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def release(self) -> None:
        """Lets others work there. The lock's file stays, as removing it would let two in."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self.folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()
