"""A tool's process: begun on a worker's thread, ended from the window's."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.RunModel import duration

ROOT = Path(__file__).resolve().parents[2]
# what a process gets to end by itself before it is killed
PATIENCE_SECONDS = 3.0
# what the system does to a process that takes too much memory
KILLED = -9
ERROR = re.compile(r"^(?:\S+\.py: )?error: ")


class ToolCancelled(UserError):
    """A tool was ended before it was done."""

    def __init__(self) -> None:
        super().__init__(tr("Cancelled."))


class ToolProcess:
    """One use of a tool: its process, which may be ended at any time and from any thread, and how long it works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._target: Path | None = None
        self._known: set[Path] = set()
        self._since = time.monotonic()
        self.cancelled = False

    @property
    def line(self) -> str:
        """`Working … 12 s`."""
        seconds = time.monotonic() - self._since
        if seconds < 1:
            return tr("Working …")
        return tr("Working … {time}", time=duration(int(seconds)))

    @property
    def pid(self) -> int | None:
        """Number of the process; None before it is started."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether there is a process that goes on."""
        return self._process is not None and self._process.poll() is None

    def start(self, *command: str, output: int = subprocess.DEVNULL) -> subprocess.Popen:
        """Starts Python with these arguments in the project's folder, from which relative paths count.

        Args:
            command: what follows the name of the interpreter.
            output: where it prints to, as subprocess takes it.

        Raises:
            ToolCancelled: it was ended before it was started.
        """
        with self._lock:
            if self.cancelled:
                raise ToolCancelled
            self._process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT,
                text=True, encoding="utf-8", errors="replace",
            )  # fmt: skip
        return self._process

    def run_script(
        self, name: str, *arguments: str, target: Path | None = None, accepted: Collection[int] = (0,)
    ) -> str:
        """Runs a script of the project to its end and returns what it prints, with its notes and warnings.

        Args:
            name: of the file in scripts/.
            arguments: as on the command line.
            target: file that it writes; what is half written beside it goes if the script does not get to its end.
            accepted: statuses with which it may end, where they tell what it found.

        Raises:
            UserError: with what it says is wrong.
            ToolCancelled: it was ended.
        """
        if target is not None:
            self._target = Path(os.path.realpath(ROOT / target))
            self._known = self._unfinished()
        process = self.start(str(ROOT / "scripts" / name), *arguments, output=subprocess.PIPE)
        printed, said = process.communicate()
        lines = said.strip().splitlines()
        if process.returncode in accepted:
            notes = [line for line in lines if line.startswith(("note: ", "warning: "))]
            return "\n".join([printed.rstrip(), *notes])
        self._clean_up()
        if self.cancelled:
            raise ToolCancelled
        errors = [ERROR.sub("", line) for line in lines if ERROR.match(line)]
        if not errors:
            errors = [_ending(name, process.returncode), *lines[-1:]]
        raise UserError("\n".join(errors))

    def cancel(self) -> None:
        """Ends the process, or keeps it from being started; returns when it is gone. Takes seconds if it resists."""
        with self._lock:
            self.cancelled = True
        if self._process is not None:
            end_process(self._process)
            self._clean_up()

    def _unfinished(self) -> set[Path]:
        """Files are written beside their target, under its name with a dot before it, and renamed when whole."""
        if self._target is None or not self._target.parent.is_dir():
            return set()
        return {path for path in self._target.parent.iterdir() if path.name.startswith(f".{self._target.name}.")}

    def _clean_up(self) -> None:
        for path in self._unfinished() - self._known:
            with contextlib.suppress(OSError):
                path.unlink()


def end_process(process: subprocess.Popen, seconds: float = PATIENCE_SECONDS) -> None:
    """Asks a process to end, and kills it if it does not within `seconds`."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ending(name: str, status: int) -> str:
    """What to say of a script that could not tell itself why it ended."""
    if status < 0:
        told = tr("{name} was ended from outside (signal {signal}).", name=name, signal=-status)
        return f"{told} {tr('The system may have run out of memory.')}" if status == KILLED else told
    return tr("{name} ended with status {status}.", name=name, status=status)
