"""Schedules that a config names as a class of torch, from a list: a config that a stranger made must not run code."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from modules.util.config.errors import show_value
from modules.util.config.topics.TrainingOptions import CUSTOM_SCHEDULES
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch.optim import lr_scheduler

# torch's others want functions, schedulers or a measured loss, which JSON can't give. transformers and diffusers have
# functions, which stand under their own names in `learning_rate_scheduler`, and no class that follows steps alone.
CLASSES: Mapping[str, type[lr_scheduler.LRScheduler]] = {
    name: getattr(lr_scheduler, name.rpartition(".")[2]) for name in CUSTOM_SCHEDULES
}
# given by the run, or no plain value
OWN_ARGUMENTS = ("optimizer", "last_epoch", "scale_fn")
MOST_STEPS = 1_000_000
KEY, CLASS_KEY = "scheduler_params", "custom_learning_rate_scheduler"


def custom_factors(config: TrainConfig, total: int) -> list[float]:
    """The factors of all `total` steps, by the class that `custom_learning_rate_scheduler` names.

    "%TOTAL_STEPS%", "%EPOCHS%" and "%LR%" (1, as factors are asked for) in `scheduler_params` stand for the run's.

    Raises:
        UserError: a name that is not one of `CLASSES`, or arguments with which it makes no schedule.
    """
    name = config.custom_learning_rate_scheduler or ""
    kind = CLASSES.get(name)
    if kind is None:
        raise UserError(f"{CLASS_KEY}: found {show_value(name)}, expected one of {', '.join(CLASSES)}.")
    if total > MOST_STEPS:
        raise UserError(
            f"{CLASS_KEY}: computes every step before the first one; found {total:,} steps, expected at most "
            f"{MOST_STEPS:,}. Choose one of the schedules by name."
        )
    options = _options(config, kind, total)
    # some of them move momentum, too, which is left alone here
    carrier = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    factors = []
    try:
        scheduler = kind(carrier, **options)
        for step in range(total):
            factors.append(float(carrier.param_groups[0]["lr"]))
            if step + 1 < total:
                carrier.step()
                scheduler.step()
    # plain values alone reach this: whatever torch's arithmetic makes of them is the arguments' fault
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{KEY}: {kind.__name__} refuses {_shown(options)}: {reason}.") from error
    wrong = next((step for step, factor in enumerate(factors) if not 0 <= factor < math.inf), None)
    if wrong is not None:
        raise UserError(
            f"{KEY}: {kind.__name__} with {_shown(options)} gives a factor of {factors[wrong]:g} at step "
            f"{wrong + 1}, expected 0 or more."
        )
    return factors


def _options(config: TrainConfig, kind: Callable[..., Any], total: int) -> dict[str, Any]:
    words = {"%TOTAL_STEPS%": total, "%EPOCHS%": config.epochs, "%LR%": 1.0}
    known = [key for key in inspect.signature(kind).parameters if key not in OWN_ARGUMENTS]
    options: dict[str, Any] = {}
    for index, entry in enumerate(config.scheduler_params or []):
        key, value = entry.get("key"), entry.get("value")
        if key not in known:
            raise UserError(
                f"{KEY}.{index}: {kind.__name__} has no argument {show_value(key)}, expected one of {', '.join(known)}."
            )
        value = words.get(value, value) if isinstance(value, str) else value
        if not _plain(value):
            raise UserError(
                f"{KEY}.{index}: found {show_value(value)} for {key}, expected a number, a word, true, false or a list "
                "of numbers."
            )
        options[key] = value
    return options


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={show_value(value)}" for key, value in options.items()) or "no arguments"


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, (int, float)) and _plain(item) for item in value)
    return value is None or isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))
