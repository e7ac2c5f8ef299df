"""Short trainings of one base model on one data set that differ in a few options: which learning rate is best for what.

The model is loaded and everything encoded once. Every run starts from the same weights, sees the same batches, noise
and timesteps, and is measured with the same draws, so that two runs differ by their options alone.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from modules.dataLoader.prepare_data import prepare_data
from modules.model.BaseModel import family_of
from modules.module.AdapterSet import AdapterSet
from modules.trainer.devices import resolve_device
from modules.trainer.lr_schedule import schedule_factor
from modules.trainer.objective import batch_losses
from modules.trainer.optimizers import create_optimizer
from modules.trainer.trained import make_trained
from modules.trainer.TrainedSet import TrainedSet
from modules.trainer.validation import DRAWS, validation_loss
from modules.util.config.load import resolve_concepts
from modules.util.config.TrainConfig import TrainConfig
from modules.util.keyed_random import step_generator, step_seed

import torch
from torch import nn

COMPONENT = "unet"

# parameters and learning rate -> groups with `params`, `lr` and `name`
Groups = Callable[[list[nn.Parameter], float], list[dict[str, Any]]]
# parameters -> what holds the optimizer's step of a number from 0
Observe = Callable[[list[nn.Parameter]], Callable[[int], AbstractContextManager[Any]]]
# what is trained and its optimizer
Look = Callable[[TrainedSet, torch.optim.Optimizer], None]


def one_group(parameters: list[nn.Parameter], learning_rate: float) -> list[dict[str, Any]]:
    return [{"params": parameters, "lr": learning_rate, "name": COMPONENT}]


@contextmanager
def undone(trained: TrainedSet) -> Iterator[None]:
    """Trains in between; afterwards the model is as it was, without adapters and with its own weights put back."""
    adapters = isinstance(trained, AdapterSet)
    before = {} if adapters else {name: value.clone() for name, value in trained.state_dict().items()}
    try:
        yield
    finally:
        if adapters:
            trained.unhook()
        else:
            trained.load_state_dict(before)
            trained.requires_grad_(False)


def unobserved(parameters: list[nn.Parameter]) -> Callable[[int], AbstractContextManager[Any]]:
    return lambda step: nullcontext()


def unnoticed(trained: TrainedSet, optimizer: torch.optim.Optimizer) -> None:
    """Looks at nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a short training came to.

    Attributes:
        training: mean loss over the training images, with fixed draws; infinite if the run diverged.
        validation: the same over the validation images; not a number where they are left aside.
        curve: loss of each step.
        seconds: of all steps.
        trained: how many numbers were trained.
    """

    training: float
    validation: float
    curve: tuple[float, ...]
    seconds: float
    trained: int


class Sweep:
    """Trains the denoiser of one base model, or adapters on it, again and again from the start.

    Args:
        config: what all runs share; the text encoder is not trained.
        steps: of each run; the schedule ends with them.
        warn: gets remarks, one line each.
        held_out: whether the validation images are measured, too.
        draws: of noise and timestep for each image that is measured.
    """

    def __init__(
        self,
        config: TrainConfig,
        steps: int,
        warn: Callable[[str], None],
        *,
        held_out: bool = True,
        draws: int = DRAWS,
    ) -> None:
        self.config = config.model_copy(
            update={"text_encoder": config.text_encoder.model_copy(update={"train": False})}
        )
        self.steps, self.warn, self.draws = steps, warn, draws
        concepts = resolve_concepts(self.config, warn=warn)
        self.model = family_of(self.config).load(self.config, resolve_device(self.config))
        self.data, self.held_out = (
            prepare_data(self.config, concepts, self.model, cache_text=True, validation=validation, warn=warn)
            if held_out or not validation
            else None
            for validation in (False, True)
        )
        self.untrained = (self._measure(self.data), self._measure(self.held_out))

    def run(
        self,
        options: Mapping[str, Any],
        learning_rate: float,
        groups: Groups = one_group,
        observe: Observe = unobserved,
        started: Look = unnoticed,
        examine: Look = unnoticed,
    ) -> Outcome:
        """One training.

        Args:
            options: of the config, by their names, that are replaced.
            learning_rate: before the schedule's factor.
            groups: how it is shared out among the parameters.
            observe: may look at the parameters before and after steps; its time is not counted.
            started: gets what is trained and its optimizer before the first step.
            examine: may look at what was trained when all steps are done, diverged runs included.
        """
        config = self.config.model_copy(update={**options, "learning_rate": learning_rate})
        trained = make_trained(self.model, config, self.warn)[COMPONENT]
        with undone(trained):
            return self._train(config, trained, groups(trained.parameters(), learning_rate), observe, started, examine)

    def _train(
        self,
        config: TrainConfig,
        trained: TrainedSet,
        groups: list[dict[str, Any]],
        observe: Observe,
        started: Look,
        examine: Look,
    ) -> Outcome:
        parameters = trained.parameters()
        optimizer = create_optimizer(config.optimizer, groups, config.seed)
        started(trained, optimizer)
        rates, held = [group["lr"] for group in optimizer.param_groups], observe(parameters)
        factor, curve, epoch, waiting = schedule_factor(config, self.steps), [], 0, []
        seconds = 0.0
        for step in range(self.steps):
            start = time.perf_counter()
            if not waiting:
                waiting, epoch = list(self.data.plan(epoch)), epoch + 1
            batch = self.data.load(waiting.pop(0))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step)
            torch.manual_seed(step_seed(config.seed, "dropout", step))
            generator = step_generator(config.seed, "noise", step)
            loss = batch_losses(config, self.model, batch, generator, {COMPONENT: trained}).mean()
            curve.append(loss.item())
            if not math.isfinite(curve[-1]):
                break
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm or math.inf)
            seconds += time.perf_counter() - start
            with held(step):
                start = time.perf_counter()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seconds += time.perf_counter() - start
        trained.eval()
        examine(trained, optimizer)
        training, validation = self._measure(self.data, trained), self._measure(self.held_out, trained)
        return Outcome(training, validation, tuple(curve), seconds, sum(p.numel() for p in parameters))

    def _measure(self, data: Any, trained: TrainedSet | None = None) -> float:
        if data is None:
            return math.nan
        sets = None if trained is None else {COMPONENT: trained}
        loss = validation_loss(self.model, data, self.config.seed, self.draws, sets)
        return loss if math.isfinite(loss) else math.inf


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate of least loss, between those that were tried.

    The lowest point of the parabola in log(rate) through the best rate and its two neighbours; the best rate itself at
    the ends of the grid, or where a neighbour diverged.

    Args:
        rates: increasing, above 0.
        losses: of each; infinite where a run diverged.

    Raises:
        ValueError: no run converged.
    """
    if not any(map(math.isfinite, losses)):
        raise ValueError("found no finite loss, expected at least one rate that converges")
    best = min(range(len(rates)), key=losses.__getitem__)
    if best in (0, len(rates) - 1) or not math.isfinite(losses[best - 1] + losses[best + 1]):
        return rates[best]
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(rates[i]), losses[i]) for i in (best - 1, best, best + 1))
    # slopes of the two chords; the parabola's own slope goes linearly from one middle to the other
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    if right <= left:
        return rates[best]
    middle_left, middle_right = (x0 + x1) / 2, (x1 + x2) / 2
    return math.exp(middle_left - left * (middle_right - middle_left) / (right - left))


def spread_of(rates: Sequence[float]) -> float:
    """The largest over the smallest."""
    return max(rates) / min(rates)
