from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from modules.trainer.RunProcess import RunProcess
from modules.util.config.write_json import write_json
from modules.viewModel.RunModel import RunModel
from modules.viewModel.RunQueue import RunQueue


class RunController:
    """Starts runs, asks things of them, and keeps `model` up to date. One run at a time, the queue's included.

    Args:
        folder: of everything that runs leave behind for the window: configs, events, logs, the queue.

    Attributes:
        model: of the run that is shown.
        queue: what is to run next.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = RunModel()
        self.queue = RunQueue(folder / "queue")
        self._find_again()

    @property
    def running(self) -> bool:
        return self.model.state == "running"

    def start(self, config: Mapping[str, Any], secrets: Mapping[str, Any] | None = None, resume: str = "") -> None:
        """Trains exactly this config.

        Args:
            config: as JSON.
            secrets: access tokens, as JSON; handed over in a file that only this user can read.
            resume: folder of the backup to continue; empty: as the config says.

        Raises:
            RuntimeError: another run goes on.
            OSError, ConfigError: files can't be written, or the process can't be started.
        """
        if self.running:
            raise RuntimeError("A run goes on already. Stop it first, or put this one into the queue.")
        folder = self._fresh()
        folder.mkdir(parents=True)
        write_json(folder / "config.json", dict(config))
        hidden = None
        if secrets and any(secrets.values()):
            hidden = folder / "secrets.json"
            hidden.touch(mode=0o600)
            write_json(hidden, dict(secrets))
            hidden.chmod(0o600)
        self.model.follow(RunProcess.start(folder / "config.json", folder, hidden, resume=resume))

    def ask(self, wish: str) -> None:
        """`stop`, `sample`, `backup` or `save`; nothing happens if nothing runs."""
        if self.running:
            self.model.run.ask(wish)

    def kill(self) -> None:
        """Ends the run at once."""
        if self.running:
            self.model.run.kill()

    def tick(self) -> bool:
        """Looks at the run and the queue; True if anything changed. To be called a few times each second."""
        changed = self.model.tick()
        if not self.running or self.queue.current is not None:
            started = self.queue.tick()
            if started is not None:
                self.model.follow(started)
                changed = True
        return changed

    def _find_again(self) -> None:
        """A run that outlived the window that started it."""
        if self.queue.current is not None:
            self.model.follow(self.queue.current)
            return
        folders = [path for path in self.folder.glob("run *") if path.is_dir()] if self.folder.is_dir() else []
        run = RunProcess.find(max(folders)) if folders else None
        if run is not None and run.running:
            self.model.follow(run)

    def _fresh(self) -> Path:
        stamp, number = f"run {datetime.now():%Y-%m-%d_%H-%M-%S}", 0
        while (path := self.folder / f"{stamp}{f'-{number}' if number else ''}").exists():
            number += 1
        return path


def backups_of(workspace: Path) -> list[tuple[str, Path]]:
    """The backups in a workspace, newest first: what to call them, and their folders. Whether they are intact is
    found when one is used.
    """
    folder = workspace / "backup"
    found = [path for path in folder.glob("*-backup-*") if path.is_dir()] if folder.is_dir() else []
    return [(_backup_title(path.name), path) for path in sorted(found, key=lambda path: path.name, reverse=True)
            if not path.name.startswith(".")]  # fmt: skip


def _backup_title(name: str) -> str:
    stamp, _, rest = name.partition("-backup-")
    step, _, epoch = rest.partition("-")
    day, _, clock = stamp.partition("_")
    return f"{day} {clock.replace('-', ':')}, step {step}, epoch {epoch}"
