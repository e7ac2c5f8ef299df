import math
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from benchmarks.measuring import scale_law
from benchmarks.RowFile import RowFile
from benchmarks.transfer.search import number_of
from benchmarks.transfer.Setting import Setting

COLUMNS = [*(field.name for field in fields(Setting)), "rate", "seed", "loss"]
Key = tuple[Setting, int]


class Results:
    """The losses of all trainings of a measurement, in a file that grows line by line.

    The first line says how it was made and what the columns are; then one line for each training, and one with the
    untrained loss for each task and width. A run that diverged has null for its loss.

    Args:
        path: of the file; made with the first line if it is not there.

    Attributes:
        head: the first line.
        untrained: (task, width) -> loss before any training.

    Raises:
        UserError: the file is no such file.
    """

    def __init__(self, path: Path, head: dict[str, Any] | None = None) -> None:
        self.path, self.untrained = path, {}
        self._losses: dict[Key, dict[float, float]] = {}
        self._file = RowFile(path, head, {"columns": COLUMNS, "law": scale_law()}, self._take)
        self.head = self._file.head

    def _take(self, row: Any) -> None:
        if isinstance(row, dict):
            self.untrained[row["task"], row["width"]] = row["untrained"]
            return
        *setting, rate, seed, loss = row
        own = self._losses.setdefault((Setting(*setting), seed), {})
        own[rate] = math.inf if loss is None else loss

    def add(self, setting: Setting, seed: int, rate: float, loss: float) -> None:
        """One training's loss, written at once."""
        self._file.append([*astuple(setting), rate, seed, round(loss, 6) if math.isfinite(loss) else None])

    def add_untrained(self, task: str, width: str, loss: float) -> None:
        if (task, width) not in self.untrained:
            self._file.append({"task": task, "width": width, "untrained": round(loss, 6)})

    def losses(self, setting: Setting, seed: int) -> dict[float, float]:
        """rate -> loss of all that was trained."""
        return dict(self._losses.get((setting, seed), {}))

    def on_grid(self, setting: Setting, seed: int) -> dict[int, float]:
        """Number of a rate of the grid -> loss."""
        own = self.losses(setting, seed)
        return {k: loss for rate, loss in own.items() if (k := number_of(rate)) is not None}

    def seeds(self, setting: Setting) -> list[int]:
        return sorted(seed for own, seed in self._losses if own == setting)

    def settings(self) -> list[Setting]:
        return sorted({setting for setting, _ in self._losses})

    def __contains__(self, key: tuple[Setting, int, float]) -> bool:
        setting, seed, rate = key
        return rate in self._losses.get((setting, seed), {})


def merge(results: Results, others: Iterable[Results]) -> None:
    """Adds what other files have and this one lacks."""
    for other in others:
        for (task, width), loss in other.untrained.items():
            results.add_untrained(task, width, loss)
        for (setting, seed), own in other._losses.items():
            for rate, loss in own.items():
                if (setting, seed, rate) not in results:
                    results.add(setting, seed, rate, loss)
