import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import scale_law
from benchmarks.RowFile import RowFile
from benchmarks.stability.Trial import Measured, Trial


class Results:
    """All trainings of a measurement of stability, in a file that grows line by line.

    A run that diverged has null for its loss. A quick measurement and a full one have different steps and never share
    a file.

    Args:
        path: of the file; made with its first line if it is not there.
        quick: whether it is of a quick measurement.
        head: the first line of a new file.

    Raises:
        UserError: the file is no such file.
    """

    def __init__(self, path: Path, quick: bool = False, head: Mapping[str, Any] | None = None) -> None:
        # (question, case, seed) -> rate -> measured
        self._rows: dict[tuple[str, str, int], dict[float, Measured]] = {}
        self._file = RowFile(path, head, {"measurement": "stability", "quick": quick, "law": scale_law()}, self._take)

    def _take(self, row: Any) -> None:
        loss = math.inf if row["loss"] is None else row["loss"]
        own = self._rows.setdefault((row["question"], row["case"], row["seed"]), {})
        own[row["rate"]] = Measured(loss, row["untrained"], row["figures"])

    def add(self, trial: Trial, measured: Measured) -> None:
        """One training, written at once."""
        self._file.append({
            "question": trial.question, "case": trial.case, "rate": trial.rate, "seed": trial.seed,
            "steps": trial.steps, "loss": round(measured.loss, 6) if math.isfinite(measured.loss) else None,
            "untrained": round(measured.untrained, 6), "figures": measured.figures,
        })  # fmt: skip

    def rows(self, question: str, case: str, seed: int) -> dict[float, Measured]:
        """rate -> what was measured, in increasing order of the rates."""
        return dict(sorted(self._rows.get((question, case, seed), {}).items()))

    def losses(self, question: str, case: str, seed: int) -> dict[float, float]:
        return {rate: measured.loss for rate, measured in self.rows(question, case, seed).items()}

    def seeds(self, question: str, case: str) -> list[int]:
        return sorted(seed for letter, own, seed in self._rows if (letter, own) == (question, case))
