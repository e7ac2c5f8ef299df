"""Learning rate schedules by OneTrainer's names, as pure functions of the step: nothing of them needs to be saved."""

import math
from collections.abc import Callable

from modules.trainer.custom_schedule import custom_factors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LearningRateScaler import LearningRateScaler
from modules.util.enum.LearningRateScheduler import LearningRateScheduler as Scheduler
from modules.util.UserError import UserError

import torch

from transformers import optimization

Factor = Callable[[int], float]


def _library(make: Callable[..., torch.optim.lr_scheduler.LambdaLR], total: int, **options: object) -> Factor:
    """The step -> factor function inside one of transformers' schedules, without its warm-up."""
    carrier = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return make(carrier, num_warmup_steps=0, num_training_steps=max(1, total), **options).lr_lambdas[0]


def _rex(total: int) -> Factor:
    """(1 − z) / (1 − z/2), z the share of the run that is over (REX, arXiv 2107.04197)."""
    return lambda step: (1 - step / total) / (1 - step / total / 2) if step < total else 0.0


def _custom(config: TrainConfig, total: int) -> Factor:
    """A scheduler class of torch; its factors are computed once for the whole run."""
    factors = custom_factors(config, total)
    return lambda step: factors[min(step, total - 1)]


def schedule_factor(config: TrainConfig, total_steps: int) -> Factor:
    """factor(step), step = 0 … total_steps − 1, to be multiplied with each group's learning rate.

    Linear warm-up over `learning_rate_warmup_steps` (a number up to 1 is a share of the run), then the schedule over
    what is left, raised so that it ends at `learning_rate_min_factor`: m + (1 − m)·f.
    """
    warmup = config.learning_rate_warmup_steps
    warmup = round(warmup * total_steps) if warmup <= 1 else round(warmup)
    rest, cycles = max(1, total_steps - warmup), config.learning_rate_cycles
    match config.learning_rate_scheduler:
        case Scheduler.CONSTANT:
            after = _library(lambda o, **k: optimization.get_constant_schedule_with_warmup(o, 0), rest)
        case Scheduler.LINEAR:
            after = _library(optimization.get_linear_schedule_with_warmup, rest)
        case Scheduler.COSINE:
            after = _library(optimization.get_cosine_schedule_with_warmup, rest)
        case Scheduler.COSINE_WITH_RESTARTS:
            after = _library(optimization.get_cosine_schedule_with_warmup, rest, num_cycles=cycles - 0.5)
        case Scheduler.COSINE_WITH_HARD_RESTARTS:
            after = _library(
                optimization.get_cosine_with_hard_restarts_schedule_with_warmup, rest, num_cycles=math.ceil(cycles)
            )
        case Scheduler.REX:
            after = _rex(rest)
        case Scheduler.CUSTOM:
            after = _custom(config, rest)
        case _:
            allowed = ", ".join(kind for kind in Scheduler if kind != config.learning_rate_scheduler)
            raise UserError(
                f"learning_rate_scheduler: {config.learning_rate_scheduler} is not supported; expected one of "
                f"{allowed}. Adafactor makes its own learning rate with optimizer.relative_step."
            )
    low = config.learning_rate_min_factor

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return low + (1 - low) * float(after(step - warmup))

    return factor


def scaled_learning_rate(config: TrainConfig, own: float | None) -> float:
    """The learning rate of a trained set (its own, or the run's), times √ of what `learning_rate_scaler` names."""
    rate = config.learning_rate if own is None else own
    scale = 1
    if config.learning_rate_scaler in (LearningRateScaler.BATCH, LearningRateScaler.BOTH):
        scale *= config.batch_size
    if config.learning_rate_scaler in (LearningRateScaler.GRADIENT_ACCUMULATION, LearningRateScaler.BOTH):
        scale *= config.gradient_accumulation_steps
    return rate * math.sqrt(scale)
