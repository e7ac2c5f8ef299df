from pathlib import Path
from typing import Any

from benchmarks.forgetting.Learner import Measures, finite
from benchmarks.forgetting.Setting import Setting
from benchmarks.RowFile import RowFile

FORMAT = "forgetting 1"
Key = tuple[Setting, int, float]


class Results:
    """What all trainings came to, in a file that grows line by line.

    The first line says how it was made. Then comes one line for each training, and one with the base model's own
    losses for each task and width. Losses of a run that diverged are null.

    Args:
        path: of the file; made with the first line if it is not there.
        head: what the first line says.

    Attributes:
        head: the first line.
        base: (task, width) -> measures of the base model itself.

    Raises:
        UserError: the file is no such file.
    """

    def __init__(self, path: Path, head: dict[str, Any] | None = None) -> None:
        self.path, self.base = path, {}
        self._measures: dict[Key, Measures] = {}
        self._file = RowFile(path, head, {"format": FORMAT}, self._take)
        self.head = self._file.head

    def _take(self, row: dict[str, Any]) -> None:
        if "base" in row:
            self.base[row["task"], row["width"]] = row["base"]
        else:
            self._measures[Setting.of(row["setting"]), row["seed"], row["rate"]] = row["measures"]

    def add(self, setting: Setting, seed: int, rate: float, measures: Measures) -> None:
        """One training, written at once."""
        self._file.append({"setting": setting.to_json(), "seed": seed, "rate": rate, "measures": finite(measures)})

    def add_untrained(self, task: str, width: str, measures: Measures) -> None:
        """The base model's own losses, the first time."""
        if (task, width) not in self.base:
            self._file.append({"task": task, "width": width, "base": finite(measures)})

    def measures(self, setting: Setting) -> dict[int, Measures]:
        """seed -> what the training came to."""
        return {seed: own for (known, seed, _), own in sorted(self._measures.items()) if known == setting}

    def settings(self, task: str) -> list[Setting]:
        """All settings of a task that were trained."""
        return sorted({setting for setting, _, _ in self._measures if setting.task == task})

    def __contains__(self, key: Key) -> bool:
        return key in self._measures
