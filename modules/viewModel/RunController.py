from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.run.RunProcess import RunProcess
from modules.trainer.backup_order import UNREADABLE, backup_number, list_backups
from modules.util.config.read_json import read_json
from modules.util.config.write_json import write_json
from modules.util.texts import tr, tr_n
from modules.viewModel.events_until import events_until
from modules.viewModel.paths import fresh_path
from modules.viewModel.RunModel import RunModel
from modules.viewModel.RunQueue import RunQueue

SECRETS = "secrets.json"


class RunController:
    """Starts runs, asks things of them, and keeps `model` up to date. One run at a time, the queue's included.

    Args:
        folder: of everything that runs leave behind for the window: configs, events, logs, the queue.

    Attributes:
        model: of the run that is shown.
        queue: what is to run next.
        secrets: access tokens, as JSON, for the runs of the queue.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = RunModel(lambda backup: events_until(backup, [folder, folder / "queue"]))
        self.secrets: Mapping[str, Any] = {}
        # results that the run had when something was asked of it
        self._asked_at: int | None = None
        self.queue = RunQueue(folder / "queue", self._start_queued)
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
            raise RuntimeError(tr("A run goes on already. Stop it first, or put this one into the queue."))
        folder = fresh_path(self.folder, "run")
        folder.mkdir(parents=True)
        write_json(folder / "config.json", dict(config))
        self._follow(_launch(folder / "config.json", folder, secrets or {}, resume))

    def ask(self, wish: str) -> None:
        """`stop`, `sample`, `backup` or `save`; nothing happens if nothing runs."""
        if self.running:
            self.model.run.ask(wish)

    def request(self, wish: str) -> str:
        """The same for a person, who stops a run and does not wait for the next one. Returns what is to be said."""
        self.ask(wish)
        if not self.running:
            return ""
        self._asked_at = self.model.results
        if wish == "stop" and self.queue.waiting and not self.queue.paused:
            self.pause_queue()
            return tr("Asked. It is done after the step in flight, and the queue is paused.")
        return tr("Asked. It is done after the step in flight.")

    @property
    def owes_answer(self) -> bool:
        """Whether something was requested of the run that it has not done yet."""
        return self._asked_at is not None and self.running and self.model.results <= self._asked_at

    @property
    def queue_note(self) -> str:
        """How the queue stands, in one line."""
        queue = self.queue
        if queue.trouble:
            return queue.trouble
        if not queue.items:
            return tr("Nothing is queued. Configs that are added run in turn.")
        if queue.paused:
            return tr("The queue is paused.") if queue.current is not None else ""
        if self.running and queue.current is None:
            return tr("Begins when the present run has ended.")
        return tr("{count} waiting", count=queue.waiting)

    @property
    def closing_question(self) -> str:
        """What is to be asked of a person who closes the window while a run goes on."""
        question = tr(
            "A run goes on. Stop it after this step, with backup and model saved, or let it go on without the window? "
            "It is shown again when the window is opened."
        )
        waiting = 0 if self.queue.paused else self.queue.waiting
        if waiting:
            more = tr_n(
                "One more config waits; it begins when the window is open again, or, if you stop, when you start the "
                "queue.",
                "{n} more configs wait; they begin when the window is open again, or, if you stop, when you start the "
                "queue.",
                waiting,
            )
            question += f"\n\n{more}"
        return question

    def kill(self) -> None:
        """Ends the run at once."""
        if self.running:
            self.model.run.kill()

    def tick(self) -> bool:
        """Looks at the run and the queue; True if anything changed. To be called a few times each second."""
        changed = self.model.tick()
        if changed and self.model.run is not None:
            # a run has read them when it says its first word
            (self.model.run.folder / SECRETS).unlink(missing_ok=True)
        if not self.running or self.queue.current is not None:
            started = self.queue.tick()
            if started is not None:
                self._follow(started)
                changed = True
        return changed

    def start_queue(self) -> None:
        """Starts what waits, one after the other, as soon as nothing else runs."""
        self.queue.paused = False

    def pause_queue(self) -> None:
        """Starts nothing more; what runs goes on."""
        self.queue.paused = True

    def _follow(self, run: RunProcess) -> None:
        # what was asked of another run is no longer of interest
        self._asked_at = None
        self.model.follow(run)

    def _start_queued(self, config: Path, folder: Path) -> RunProcess:
        folder.mkdir(parents=True, exist_ok=True)
        # a copy stands with the run, as of those that are started at once: what comes next reads it there
        own = folder / "config.json"
        write_json(own, read_json(config))
        return _launch(own, folder, self.secrets)

    def _find_again(self) -> None:
        """A run that outlived the window that started it."""
        folders = [path for path in self.folder.glob("run *") if path.is_dir()] if self.folder.is_dir() else []
        run = self.queue.current or (RunProcess.find(max(folders, key=_age)) if folders else None)
        if run is not None and run.running:
            self._follow(run)
        # left by runs that ended while nobody looked
        for path in [*self.folder.glob(f"run */{SECRETS}"), *self.folder.glob(f"queue/run */{SECRETS}")]:
            if self.model.run is None or path.parent != self.model.run.folder:
                path.unlink(missing_ok=True)


def _launch(config: Path, folder: Path, secrets: Mapping[str, Any], resume: str = "") -> RunProcess:
    """Starts a run, with tokens in a file beside it if there are any; without a run, the file stays for nobody."""
    path = folder / SECRETS if any(secrets.values()) else None
    try:
        if path is not None:
            write_json(path, dict(secrets), private=True)
        return RunProcess.start(config, folder, path, resume=resume)
    except BaseException:
        (folder / SECRETS).unlink(missing_ok=True)
        raise


def backups_of(workspace: Path) -> list[tuple[str, Path]]:
    """The backups in a workspace, the one that was written last first: what to call them, and their folders.

    Whether they are intact is found when one is used; those whose manifest can't be read come last.
    """
    found = [path for path in list_backups(workspace / "backup") if path.is_dir()]
    found.sort(key=lambda path: backup_number(path) == UNREADABLE)
    return [(_backup_title(path.name), path) for path in found]


def _age(path: Path) -> list[tuple[int, str]]:
    """Order of names that begin with a time: of those of the same second, numbers count as numbers, 12 after 6."""
    return [(int(piece) if piece.isdigit() else -1, piece) for piece in path.name.split("-")]


def _backup_title(name: str) -> str:
    stamp, _, rest = name.partition("-backup-")
    step, _, epoch = rest.partition("-")
    day, _, clock = stamp.partition("_")
    when = f"{day} {clock.replace('-', ':')}"
    return tr("{when}, step {step}, epoch {epoch}", when=when, step=step, epoch=epoch)
