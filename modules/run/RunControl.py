"""A run seen from another process: what it tells goes to one file, what is asked of it comes from another.

Files, because they outlive both: a window that was closed finds the run again, and a run goes on without its window.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

from modules.trainer.events import TrainCommands

EVENTS, COMMANDS = "events.jsonl", "commands.txt"
# what may be asked: the attributes of `TrainCommands`
WISHES = tuple(TrainCommands.__dataclass_fields__)
INTERVAL = 0.2


class RunControl:
    """The run's side. A listener of `TrainEvents`: each event becomes a line of JSON with its kind and time.

    Args:
        folder: of this one run; made if it does not exist.
        commands: gets what the lines of the commands file ask for.
    """

    def __init__(self, folder: Path, commands: TrainCommands) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._commands, self._wishes = commands, folder / COMMANDS
        self._file = (folder / EVENTS).open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run commands", daemon=True)
        self._thread.start()

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, "time": time.time(), **values}, default=str)
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{line}\n")
                self._file.flush()

    def hand_over(self) -> None:
        """Leaves the folder to another process of the same run, which goes on telling."""
        self._done.set()
        self._thread.join()
        with self._lock:
            self._file.close()

    def close(self, status: str, error: str = "") -> None:
        """The last event, `ended`.

        Args:
            status: "finished", "stopped" or "failed".
            error: for people, what went wrong; empty if nothing did.
        """
        self._done.set()
        self("ended", {"status": status, "error": error})
        with self._lock:
            self._file.close()

    def _follow(self) -> None:
        place = 0
        while not self._done.wait(INTERVAL):
            try:
                with self._wishes.open("rb") as file:
                    file.seek(place)
                    new = file.read()
            except OSError:
                # nobody has asked for anything yet
                continue
            # a line that is being written is left for the next look
            whole = new[: new.rfind(b"\n") + 1]
            place += len(whole)
            for wish in whole.decode("utf-8", errors="replace").split():
                if wish in WISHES:
                    setattr(self._commands, wish, True)
