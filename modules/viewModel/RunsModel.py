from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.texts import tr, tr_n
from modules.viewModel.config_difference import Defaults, Difference, differences
from modules.viewModel.run_data import RunData, read_run
from modules.viewModel.run_list import GONE, RUNNING, WAITING, ListedRun, find_runs
from modules.viewModel.run_summary import Summaries, Summary
from modules.viewModel.Worker import Worker

# runs that are compared at once, as many as there are colours; workspaces that are remembered
MOST_CHOSEN, MOST_REMEMBERED = 8, 100
# runs whose curves are kept in memory
MOST_KEPT = 24


class RunsModel:
    """All known runs, and those of them that are looked at. What is read is read by a thread.

    Args:
        worker: reads.
        runs: folder of what runs leave behind for the window.
        root: from where relative paths count; its folder `workspace` is always searched.
        added: folders that the person wants to be searched; changed in place.
        remembered: workspaces that runs have used, the newest first; changed in place.
        waiting: gives name and config file of what waits in the queue.
        changed: called when there is something new.

    Attributes:
        rows: all runs, in the order of `find_runs`.
        chosen: keys of those that are looked at, in the order in which they stand.
        data: key -> curves and pictures, of those that have been read.
        loaded: whether the list has been read once.
    """

    def __init__(
        self,
        worker: Worker,
        runs: Path,
        root: Path,
        added: list[str],
        remembered: list[str],
        waiting: Callable[[], Sequence[tuple[str, str]]],
        changed: Callable[[], None],
    ) -> None:
        self._worker, self._runs, self._root, self._changed = worker, runs, root, changed
        self._added, self._remembered, self._waiting = added, remembered, waiting
        self._summaries, self._looking, self._again = Summaries(), False, False
        self._stamps: dict[str, Summary] = {}
        self._reading = ""
        self.rows: list[ListedRun] = []
        self.chosen: list[str] = []
        self.data: dict[str, RunData] = {}
        self.loaded, self.trouble = False, ""

    @property
    def runs(self) -> list[ListedRun]:
        """Those that are looked at."""
        known = {run.key: run for run in self.rows}
        return [known[key] for key in self.chosen if key in known]

    @property
    def any_running(self) -> bool:
        """Whether a run goes on, so that the list will change."""
        return any(run.state == RUNNING for run in self.rows)

    @property
    def note(self) -> str:
        """How many there are, in one line."""
        if self.trouble:
            return self.trouble
        if not self.loaded:
            return tr("Looking for runs …")
        return tr_n("{n} run", "{n} runs", sum(run.state != GONE for run in self.rows))

    def refresh(self) -> None:
        """Looks at all runs anew, and at those that are looked at where they have changed."""
        if self._looking:
            self._again = True
            return
        self._looking = True
        runs, root, waiting = self._runs, self._root, list(self._waiting())
        own = root / "workspace"
        folders = [*([own] if own.is_dir() else []), *map(Path, self._added), *map(Path, self._remembered)]
        folders = list(dict.fromkeys(folders))

        def take(rows: list[ListedRun]) -> None:
            self._looking, self.loaded, self.trouble, self.rows = False, True, "", rows
            self._remember()
            self.chosen = [key for key in self.chosen if any(run.key == key for run in rows)]
            self._read_chosen()
            self._changed()
            if self._again:
                self._again = False
                self.refresh()

        def give_up(error: Exception) -> None:
            self._looking, self.loaded = False, True
            self.trouble = tr("The runs cannot be read: {error}", error=error)
            self._changed()

        self._worker.run(lambda: find_runs(runs, root, folders, self._summaries, waiting), take, give_up)

    def _remember(self) -> None:
        """Workspaces outside of what is searched anyway; a person can have used any folder."""
        searched = [self._root / "workspace", *map(Path, self._added)]
        for run in reversed(self.rows):
            place = run.workspace
            if place is None or run.state == GONE or any(place.is_relative_to(folder) for folder in searched):
                continue
            if str(place) not in self._remembered:
                self._remembered.insert(0, str(place))
        del self._remembered[MOST_REMEMBERED:]

    def add_folder(self, folder: Path) -> None:
        """Searches a folder, from now on."""
        if str(folder) not in self._added:
            self._added.append(str(folder))
        self.refresh()

    def can_forget(self) -> bool:
        """Whether one that is looked at is known by nothing but a folder that is gone."""
        return any(run.state == GONE for run in self.runs)

    def forget(self) -> None:
        """Takes folders that are gone out of the list. No file is touched."""
        for run in self.runs:
            if run.state == GONE:
                for known in (self._added, self._remembered):
                    if run.key in known:
                        known.remove(run.key)
        self.refresh()

    def choose(self, keys: Sequence[str]) -> None:
        """Looks at these runs."""
        if list(keys) != self.chosen:
            self.chosen = list(keys)
            self._read_chosen()
            self._changed()

    def compared(self) -> list[tuple[ListedRun, RunData]]:
        """Those that are looked at and have been read, at most `MOST_CHOSEN`."""
        return [(run, self.data[run.key]) for run in self.runs[:MOST_CHOSEN] if run.key in self.data]

    @property
    def reads(self) -> bool:
        """Whether one that is looked at is still being read."""
        return any(self._stamps.get(run.key) != run.summary for run in self.runs[:MOST_CHOSEN])

    def _read_chosen(self) -> None:
        """Reads one of those that are missing or have changed; the next one when it is there."""
        missing = [run for run in self.runs[:MOST_CHOSEN] if self._stamps.get(run.key) != run.summary]
        if not missing or self._reading:
            return
        run = missing[0]
        self._reading = run.key
        self._worker.run(
            lambda: read_run(run.events, run.workspace), lambda data: self._take(run, data),
            lambda error: self._give_up(run, error),
        )  # fmt: skip

    def _take(self, run: ListedRun, data: RunData) -> None:
        self._reading = ""
        self.data.pop(run.key, None)
        self.data[run.key], self._stamps[run.key] = data, run.summary
        for key in [key for key in self.data if key not in self.chosen][: max(0, len(self.data) - MOST_KEPT)]:
            del self.data[key]
            del self._stamps[key]
        self._read_chosen()
        self._changed()

    def _give_up(self, run: ListedRun, error: Exception) -> None:
        self._reading = ""
        self.trouble = tr("{name} cannot be read: {error}", name=run.name, error=error)
        # not again before it has changed
        self._stamps[run.key] = run.summary
        self._read_chosen()
        self._changed()

    def compare(
        self, defaults: Defaults | None, done: Callable[[list[ListedRun], list[Difference]], None],
        failed: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        """Finds in which options those that are looked at differ; one alone is compared with the program's defaults."""
        runs = [run for run in self.runs[:MOST_CHOSEN] if run.config is not None]

        def work() -> list[Difference]:
            configs = [load_train_config(run.config, warn=lambda text: None) for run in runs]
            return differences([*configs, *([TrainConfig()] if len(configs) == 1 else [])], defaults)

        self._worker.run(work, lambda found: done(runs, found), failed)


def cells_of(run: ListedRun) -> tuple[str, ...]:
    """What a list says of a run: name, state, model, method, date, steps, last loss, best validation loss."""
    summary = run.summary
    steps = f"{summary.steps:,}" if summary.steps or run.state not in (WAITING, GONE) else ""
    if summary.total and summary.total != summary.steps:
        steps = tr("{steps} of {total}", steps=steps, total=f"{summary.total:,}")
    return (
        run.name, state_name(run.state), run.family, run.method, when(summary.began), steps, number(summary.loss),
        number(summary.best),
    )  # fmt: skip


def state_name(state: str) -> str:
    """A state for people."""
    return {
        "running": tr("running"), "finished": tr("finished"), "stopped": tr("stopped"), "failed": tr("failed"),
        "waiting": tr("in the queue"), "gone": tr("folder gone"),
    }.get(state, state)  # fmt: skip


def when(seconds: float) -> str:
    """A time for people; empty for an unknown one."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}" if seconds else ""


def number(value: float | None) -> str:
    """A loss for people."""
    return "" if value is None else f"{value:.4f}"


def order_of(run: ListedRun, column: int) -> tuple[bool, object]:
    """By what a column of `cells_of` sorts; what is not known comes last."""
    summary = run.summary
    value: object = {
        4: summary.began or None, 5: summary.steps or None, 6: summary.loss, 7: summary.best,
    }.get(column, cells_of(run)[column].lower())  # fmt: skip
    return value is None, 0 if value is None else value
