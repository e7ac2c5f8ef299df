from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.stability.Trial import Trial
from benchmarks.training.sweep import Sweep
from modules.trainer.TrainedSet import TrainedSet

import torch
from torch import nn


class Watcher:
    """Looks at one training. This one sees nothing; what a question measures is a subclass.

    Args:
        sweep: in which it runs.
        trial: the training.

    Attributes:
        trained, optimizer, parameters: of the training, from its first step on.
    """

    trained: TrainedSet
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        self.sweep, self.trial = sweep, trial

    @contextmanager
    def training(self) -> Iterator[None]:
        """Holds the whole training, what makes its optimizer included."""
        yield

    def started(self, trained: TrainedSet, optimizer: torch.optim.Optimizer) -> None:
        """See `sweep.Look`."""
        self.trained, self.optimizer = trained, optimizer

    def observe(self, parameters: list[nn.Parameter]) -> Callable[[int], AbstractContextManager[Any]]:
        """See `sweep.Observe`."""
        self.parameters = parameters
        self.prepare()
        return self.step

    def prepare(self) -> None:
        """Before the first step."""

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Holds the optimizer's step number `index`, from 0; gradients are there."""
        yield

    def figures(self) -> dict[str, Any]:
        """What was measured, after the last step, ready for JSON."""
        return {}
