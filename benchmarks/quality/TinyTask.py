import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.quality.contestants import Contestant
from benchmarks.quality.FactorTrace import FactorTrace
from benchmarks.quality.Task import Result
from benchmarks.training.sweep import Sweep

from torch import nn


class TinyTask:
    """A LoRA on the denoiser of a small diffusion model learns its demo concept.

    A learning rate is chosen by the loss over the training images, with draws of noise that no training sees, and
    measured on the validation images. Nothing is classified.

    Args:
        sweep: model, data and everything else that is the same for all; the schedule is its config's.
        rank: of every LoRA.
        facts: more that a reader should know, ready for JSON.
    """

    def __init__(self, sweep: Sweep, rank: int, facts: Mapping[str, Any] | None = None) -> None:
        self.sweep, self.rank = sweep, rank
        self.facts: dict[str, Any] = {
            "task": "tiny", "model": sweep.config.base_model_name, "rank": rank, "steps": sweep.steps,
            "batch": sweep.config.batch_size, "layers": sweep.config.layer_filter, **(facts or {}),
        }  # fmt: skip

    def run(self, contestant: Contestant, rate: float, seed: int) -> Result:
        traces: list[FactorTrace] = []

        def observe(parameters: list[nn.Parameter]) -> Callable[[int], AbstractContextManager[Any]]:
            traces.append(FactorTrace(parameters, self.sweep.steps))
            return traces[0].step

        options = {**contestant.config_changes(self.rank), "seed": seed}
        outcome = self.sweep.run(options, rate, contestant.groups, observe)
        last = outcome.curve[-max(1, self.sweep.steps // 10) :]
        training = sum(last) / len(last)
        return Result(
            outcome.training, outcome.validation, None, training if math.isfinite(training) else math.inf,
            outcome.seconds / len(outcome.curve), traces[0].to_json(),
        )  # fmt: skip
