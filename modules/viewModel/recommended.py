"""Settings that the project's sources recommend, as one click."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod

SCALED_RATE = 1e-3
# per step, whatever the learning rate
FISHER_DECAY = 1e-6
SLOWEST_BETA2 = 0.99
CENTERED_DECAY, STANDARD_DECAY = 1e-4, 1e-6


@dataclass(frozen=True)
class Recommendation:
    """Settings that belong together.

    Attributes:
        title, help: for people.
        needs: options that the optimizer must have.
        asks: why it is of no use for a config; empty if it is of use.
        values: path -> value, for a config.
    """

    title: str
    help: str
    needs: tuple[str, ...]
    asks: Callable[[TrainConfig], str]
    values: Callable[[TrainConfig], dict[str, Any]]


def _always(config: TrainConfig) -> str:
    return ""


def _is_adapter(config: TrainConfig) -> str:
    return "" if config.training_method == TrainingMethod.LORA else "its rate is for adapters (“Training method” LORA)"


def _scaled(config: TrainConfig) -> dict[str, Any]:
    both = (
        config.training_method == TrainingMethod.LORA and config.peft_type == PeftType.OFT_2 and config.lora_decompose
    )
    values: dict[str, Any] = {
        "optimizer.scaled_optm": True,
        # directions and lengths add up to twice the variance
        "learning_rate": SCALED_RATE / 2 if both else SCALED_RATE,
    }
    if config.training_method == TrainingMethod.LORA:
        values["lora_alpha"] = float(config.lora_rank)
        values |= {"oft_scaled": True} if config.peft_type == PeftType.OFT_2 else {}
    return values


def _per_step(config: TrainConfig, decay: float) -> float:
    """The option's value for a decay per step: without scaled steps it is multiplied by the learning rate."""
    return decay if config.optimizer.scaled_optm or not config.learning_rate else decay / config.learning_rate


def _fisher(config: TrainConfig) -> dict[str, Any]:
    own = config.optimizer
    values: dict[str, Any] = {"optimizer.fisher_wd": True, "optimizer.weight_decay": _per_step(config, FISHER_DECAY)}
    if not own.kourkoutas_beta and (own.beta2 is None or own.beta2 > SLOWEST_BETA2):
        values["optimizer.beta2"] = SLOWEST_BETA2
    return values


def _is_dora(config: TrainConfig) -> str:
    return "" if config.training_method == TrainingMethod.LORA and config.lora_decompose else "it is for DoRA"


def _centered(config: TrainConfig) -> dict[str, Any]:
    return {
        "optimizer.centered_wd": _per_step(config, CENTERED_DECAY),
        "optimizer.weight_decay": _per_step(config, STANDARD_DECAY),
    }


RECOMMENDATIONS = (
    Recommendation(
        "Scaled: 1e-3, α = rank",
        "Scaled steps with a learning rate of 1e-3 and alpha equal to the rank, which can be kept for every rank, "
        "block size and width. DoRA with OFT gets half the rate.",
        ("scaled_optm",),
        _is_adapter,
        _scaled,
    ),
    Recommendation(
        "Fisher 1e-6",
        "Fisher weight decay of 1e-6 per step, whatever the learning rate, and beta 2 of at most 0.99, so that it "
        "follows the gradients.",
        ("fisher_wd", "beta2"),
        _always,
        _fisher,
    ),
    Recommendation(
        "DoRA: centered + small standard decay",
        "A centered decay of 1e-4 per step holds the adapter near the original model; a standard one of 1e-6 is all "
        "that the DoRA scale gets. A start: how much is best depends on the data.",
        ("centered_wd", "weight_decay"),
        _is_dora,
        _centered,
    ),
)
SCALED_OPTIMIZER = Optimizer.ADAMW_ADV
"""Taken where the optimizer at hand has not what a recommendation needs."""
