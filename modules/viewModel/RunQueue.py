import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from modules.run.RunProcess import RunProcess
from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.config.write_json import write_json
from modules.util.texts import later, tr
from modules.viewModel.paths import fresh_path
from modules.viewModel.run_words import family_name, method_name, output_of

LIST = "queue.json"
WAITING, RUNNING = later("waiting"), later("running")
# what a process says of its end
ENDS = (later("finished"), later("stopped"), later("failed"))


@dataclass
class QueuedRun:
    """One config that is to be trained.

    Attributes:
        name: for people.
        config: JSON file, a copy of its own, so that later changes of a preset do not touch it.
        folder: of the run, empty before it starts.
        state: "waiting", "running", "finished", "stopped" or "failed".
        reason: why it failed.
        added: when, for people; empty where that was not kept.
        model, method, output: of its config.
        steps: how many it will be, for people; empty where that was not known when it was added.
    """

    name: str
    config: str
    folder: str = ""
    state: str = WAITING
    reason: str = ""
    added: str = ""
    model: str = ""
    method: str = ""
    output: str = ""
    steps: str = ""

    @property
    def about(self) -> str:
        """What it is, in one line."""
        when = tr("added {when}", when=self.added) if self.added else ""
        return " · ".join(text for text in (self.model, self.method, self.steps, self.output, when) if text)

    @property
    def waits(self) -> bool:
        """Whether it is still to be trained."""
        return self.state == WAITING

    @property
    def has_run(self) -> bool:
        """Whether it ended, however it did."""
        return self.state not in (WAITING, RUNNING)


class RunQueue:
    """Configs that are trained one after the other. Kept in a file, so that nothing is forgotten.

    Args:
        folder: of the queue: its list, its configs, and what runs tell.
        start: config and folder -> running process; `RunProcess.start` if None.

    Attributes:
        current: the process that runs, None if none does.
        items: in their order, those that have run, too.
        trouble: why the list could not be read or cannot be kept, for people; empty if all is well.
    """

    def __init__(self, folder: Path, start: Callable[[Path, Path], RunProcess] | None = None) -> None:
        self.folder, self._start = folder, start or RunProcess.start
        self.current: RunProcess | None = None
        self._paused = True
        # of a file that could not be read, and must not be written over where it stands
        self._lost, self._in_the_way = "", False
        self.trouble = ""
        self.items = self._read()

    @property
    def paused(self) -> bool:
        """Whether nothing more is to be started; kept in the file, too."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._write()

    def add(self, name: str, config: dict, steps: str = "") -> QueuedRun:
        """Puts a config at the end; it is written to a file of its own. ConfigError if it cannot be.

        Args:
            name: for people.
            config: as JSON.
            steps: how many it will be, for people.
        """
        path = fresh_path(self.folder, "config", ".json")
        write_json(path, config)
        item = QueuedRun(name, str(path), added=f"{datetime.now():%Y-%m-%d %H:%M}", steps=steps, **_facts(config))
        self.items.append(item)
        self._write()
        return item

    @property
    def waiting(self) -> int:
        """How many items are still to be trained."""
        return sum(item.state == WAITING for item in self.items)

    @property
    def done(self) -> list[QueuedRun]:
        """Those that have run."""
        return [item for item in self.items if item.has_run]

    @property
    def can_toggle(self) -> bool:
        """Whether the queue can be started, or paused: it can't be started for nothing."""
        return self.waiting > 0 or not self.paused

    def clear(self) -> None:
        """Takes out what has run."""
        self.items = [item for item in self.items if not item.has_run]
        self._write()

    def can_move(self, item: QueuedRun, places: int) -> bool:
        """Whether there is such a place for an item."""
        return 0 <= self.items.index(item) + places < len(self.items)

    def remove(self, item: QueuedRun) -> None:
        """Takes out what does not run. ValueError for what does."""
        if item.state == RUNNING:
            raise ValueError(tr("{name} runs; stop it first.", name=item.name))
        self.items.remove(item)
        self._write()

    def move(self, item: QueuedRun, places: int) -> None:
        """Moves an item by so many places, up for negative numbers."""
        index = self.items.index(item)
        self.items.insert(max(0, min(len(self.items) - 1, index + places)), self.items.pop(index))
        self._write()

    def tick(self) -> RunProcess | None:
        """Notes what ended and starts what is next; the process if one was started. `paused` starts nothing new."""
        if self.current is not None and not self.current.running:
            self.current.events()
            item = next(item for item in self.items if item.state == RUNNING)
            item.state, item.reason = self.current.outcome()
            self.current = None
            self._write()
        if self.current is not None or self.paused:
            return None
        item = next((item for item in self.items if item.state == WAITING), None)
        if item is None:
            self.paused = True
            return None
        folder = fresh_path(self.folder, "run")
        try:
            self.current = self._start(Path(item.config), folder)
        except (OSError, ConfigError) as error:
            item.state, item.reason = "failed", str(error)
        else:
            item.state, item.folder = RUNNING, str(folder)
        self._write()
        return self.current

    def _read(self) -> list[QueuedRun]:
        path = self.folder / LIST
        try:
            data = json.loads(path.read_text("utf-8"))
            # until lately it was the list alone
            data = data if isinstance(data, dict) else {"items": data}
            items = [_item(entry) for entry in data["items"]]
            self._paused = data.get("paused") is not False
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            aside = path.with_name(f"{LIST}.broken-{datetime.now():%Y-%m-%d_%H-%M-%S}")
            try:
                path.rename(aside)
                told = tr("The queue could not be read ({error}); its file is now {aside}.", error=error, aside=aside)
            except OSError:
                self._in_the_way = True
                told = tr(
                    "The queue could not be read ({error}); nothing is kept until {file} is mended or removed.",
                    error=error, file=path,
                )  # fmt: skip
            self._lost = self.trouble = told
            return []
        for item in items:
            if item.state != RUNNING:
                continue
            # it may have outlived the window that started it
            run = RunProcess.find(Path(item.folder))
            if run is not None and run.running:
                self.current = run
            elif run is not None:
                run.events()
                item.state, item.reason = run.outcome()
            else:
                item.state, item.reason = "failed", tr("{folder} is gone.", folder=item.folder)
        return items

    def _write(self) -> None:
        if self._in_the_way:
            return
        try:
            write_json(self.folder / LIST, {"paused": self._paused, "items": [asdict(item) for item in self.items]})
        except ConfigError as error:
            # what runs is worth more than the list of it
            self.trouble = tr("This list cannot be kept: {error}", error=error)
        else:
            self.trouble = self._lost


def _item(entry: dict[str, str]) -> QueuedRun:
    """An item as it was written. TypeError for anything else; keys of newer programs have no effect."""
    known = {field.name: entry[field.name] for field in fields(QueuedRun) if field.name in entry}
    if not all(isinstance(value, str) for value in known.values()):
        raise TypeError(f"expected texts, found {known}")
    item = QueuedRun(**known)
    if not item.output:
        # of a program that did not keep it
        try:
            for name, text in _facts(read_json(item.config)).items():
                setattr(item, name, text)
        except ConfigError:
            # told when it is to be trained
            pass
    return item


def _facts(config: dict) -> dict[str, str]:
    return {"model": family_name(config), "method": method_name(config), "output": output_of(config)}
