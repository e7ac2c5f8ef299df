from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        question: its letter, a key of `registry.QUESTIONS`.
        case: of the question, one of its `cases`.
        rate: learning rate after the warm-up.
        seed: of start values, batches, noise and timesteps.
        steps: of the optimizer.
    """

    question: str
    case: str
    rate: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Measured:
    """What came of a training.

    Attributes:
        loss: over the training images with fixed draws, after the last step; infinite if the run diverged.
        untrained: the same before any step.
        figures: what the question measures on the way, ready for JSON; none if the run diverged.
    """

    loss: float
    untrained: float
    figures: Mapping[str, Any]
