import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from modules.run.RunControl import COMMANDS, EVENTS, WISHES
from modules.util.config.errors import ConfigError
from modules.util.config.write_json import write_json
from modules.util.texts import tr

import psutil

ROOT = Path(__file__).resolve().parents[2]
LOG, PROCESS = "log.txt", "process.json"
Event = tuple[str, dict[str, Any]]


def find_process(pid: int, born: float) -> psutil.Process | None:
    """The process of a number that began at that time, in seconds since 1970; None if it is gone."""
    try:
        process = psutil.Process(pid)
        # a process number is given again to others
        return process if abs(process.create_time() - born) < 1 else None
    except psutil.Error:
        return None


def read_event(line: bytes) -> Event | None:
    """A line of what a run tells; None for what is no event, as half a line of a run that was killed."""
    try:
        values = json.loads(line)
        return values.pop("kind"), values
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


class RunProcess:
    """A training in a process of its own, as another program sees it: `scripts/train.py` on a config file.

    It outlives whoever started it, and can be found again by its folder. Loads no torch.

    Args:
        folder: of this run: events, commands and log. `start` needs one that is new.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen | psutil.Process | None = None
        self._exit_code: int | None = None
        self._place = 0
        self.ending: dict[str, Any] | None = None

    @classmethod
    def start(
        cls, config: Path, folder: Path, secrets: Path | None = None, overrides: Sequence[str] = (), resume: str = ""
    ) -> Self:
        """Starts a training.

        Args:
            config: JSON file.
            folder: where nothing of another run is.
            secrets: JSON file with access tokens.
            overrides: `KEY=VALUE`, as on the command line.
            resume: folder of the backup to continue; empty: as the config says.

        Raises:
            FileExistsError: the folder holds another run.
            OSError, ConfigError: it can't be written, or the process can't be started. Then nothing runs.
        """
        if (folder / PROCESS).exists():
            raise FileExistsError(tr("{folder} holds another run; choose a new folder.", folder=folder))
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder)
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config-path", str(config)]
        command += ["--control", str(folder)]
        if secrets is not None:
            command += ["--secrets-path", str(secrets)]
        if resume:
            command += ["--resume", resume]
        command += [part for override in overrides for part in ("--override", override)]
        # bars are made of carriage returns, which are of no use in a log
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        own_group: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        )
        with (folder / LOG).open("ab") as log:
            run._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
                **own_group,
            )  # fmt: skip
        born = psutil.Process(run._process.pid).create_time()
        try:
            write_json(folder / PROCESS, {"pid": run._process.pid, "born": born, "config": str(config)})
        except ConfigError:
            # nobody would find it again
            run._process.kill()
            run._process.wait()
            raise
        return run

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The run of a folder, whether it still goes on or not; None if there is none."""
        try:
            known = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
            run = cls(folder)
        except (OSError, ValueError):
            return None
        run._process = find_process(known["pid"], known["born"])
        return run

    @property
    def running(self) -> bool:
        if self._process is None:
            return False
        if isinstance(self._process, subprocess.Popen):
            self._exit_code = self._process.poll()
            return self._exit_code is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def events(self) -> list[Event]:
        """Everything that the run has told since the last call: (kind, values)."""
        try:
            with (self.folder / EVENTS).open("rb") as file:
                file.seek(self._place)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._place += len(whole)
        found = [event for line in whole.splitlines() if (event := read_event(line)) is not None]
        for kind, values in found:
            if kind == "ended":
                self.ending = values
        return found

    def ask(self, wish: str) -> None:
        """Asks for `stop`, `sample`, `backup` or `save`, to be done after the step in flight. ValueError for others."""
        if wish not in WISHES:
            raise ValueError(f"found {wish!r}, expected one of {', '.join(WISHES)}")
        with (self.folder / COMMANDS).open("a", encoding="utf-8") as file:
            file.write(f"{wish}\n")

    def kill(self) -> None:
        """Ends the process, and those that it has started, at once; what is not backed up is lost."""
        if not self.running:
            return
        try:
            others = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            others = []
        self._process.kill()
        for process in others:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()

    def log(self, last: int = 200) -> list[str]:
        """The last lines that the run has printed."""
        try:
            text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.splitlines()[-last:]

    def outcome(self) -> tuple[str, str]:
        """How a run ended that runs no more: ("finished" | "stopped" | "failed", what went wrong, for people).

        A run that could not tell any more, because it was killed or crashed, has failed.
        """
        if self.ending is not None:
            return self.ending["status"], self.ending["error"]
        code = self._exit_code
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
            reason = tr("The run was ended from outside ({signal}).", signal=name)
            if name == "SIGKILL":
                reason += " " + tr("The system may have run out of memory.")
        elif code is not None:
            reason = tr("The run ended without a word (exit status {status}).", status=code)
        else:
            reason = tr("The run ended without a word.")
        lines = self.log(5)
        return "failed", "\n".join([reason, *([tr("The last it printed:"), *lines] if lines else [])])
