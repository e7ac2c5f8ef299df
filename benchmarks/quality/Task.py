from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.quality.contestants import Contestant


@dataclass(frozen=True)
class Result:
    """What one training came to.

    Attributes:
        tuning: the loss by which learning rates are chosen; infinite if the run diverged.
        validation: loss on data that neither trained nor chose anything; infinite likewise.
        accuracy: share of that data that is classified rightly, in [0, 1]; None where nothing is classified.
        training: mean loss of the last tenth of the steps.
        seconds: per step, without measuring.
        trace: of the factors, see `FactorTrace.to_json`.
    """

    tuning: float
    validation: float
    accuracy: float | None
    training: float
    seconds: float
    trace: list[dict[str, Any]]


class Task(Protocol):
    """Something to be learned by a LoRA, the same for every contestant.

    Attributes:
        facts: what a reader must know of it to make sense of the numbers, ready for JSON.
    """

    facts: Mapping[str, Any]

    def run(self, contestant: Contestant, rate: float, seed: int) -> Result:
        """One training from the start. The same arguments give the same result.

        Args:
            rate: learning rate of the down factors, at least 0.
            seed: of start values and of the order of the data.
        """
        ...
