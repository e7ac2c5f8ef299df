from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Trial
from benchmarks.stability.Watcher import Watcher
from benchmarks.transfer.search import next_rates, number_of, rate_of

QUICK_STEPS = 10


class Question(ABC):
    """A claim about stability, the trainings that answer it, and how the answer is told.

    A question is one file and one line in `registry.QUESTIONS`. A case is one way to train, all but its rate and seed.

    Attributes:
        letter: names it on the command line.
        name: of its picture's file.
        title: of its section of the report.
        steps: of each training.
        rate: where the search for the best rate begins.
        watcher: kind of what looks at each training.
    """

    letter: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]
    steps: ClassVar[int] = 40
    rate: ClassVar[float]
    watcher: ClassVar[type[Watcher]] = Watcher

    @abstractmethod
    def cases(self, quick: bool = False) -> Sequence[str]:
        """Names of all cases, or of those that a quick measurement has."""

    @abstractmethod
    def options(self, case: str) -> dict[str, Any]:
        """Options of a `TrainConfig`, by their names."""

    def expected_rate(self, case: str) -> float:
        """Where the search for the best rate of a case begins."""
        return self.rate

    def next_rates(self, case: str, found: Mapping[float, float]) -> list[float]:
        """Which rates to train next; none when enough is known.

        The best of rates that are a factor of 2 apart, with one rate beyond it at either side.

        Args:
            found: rate -> loss.
        """
        numbers = {number_of(rate): loss for rate, loss in found.items()}
        return [rate_of(k) for k in next_rates(numbers, self.expected_rate(case), fine=False)]

    def quick_rates(self, case: str) -> list[float]:
        """The rates of a quick measurement: the expected one, on the grid."""
        return self.next_rates(case, {})[1:2]

    def wanted(self, results: Results, case: str, seed: int, quick: bool) -> list[Trial]:
        """What is still to be trained of a case and seed."""
        found = results.losses(self.letter, case, seed)
        rates = self.quick_rates(case) if quick else self.next_rates(case, found)
        steps = QUICK_STEPS if quick else self.steps
        return [Trial(self.letter, case, rate, seed, steps) for rate in rates if rate not in found]

    @abstractmethod
    def report(self, results: Results) -> list[str]:
        """Tables in Markdown, and sentences that the figures allow; nothing for cases without trainings."""

    @abstractmethod
    def draw(self, results: Results, path: Path) -> None:
        """Writes a PNG. Only if there are trainings."""
