"""Settings that go together: learning rates with their sources, what follows from a choice, and one-click settings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.util.config.field_type import default_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.texts import later, tr

TINY_BASE = "tiny_sd"
MEASURED = later("measured on the tiny base of this repository in a short training (docs/recommended.md)")
KEPT = later(
    "measured on the tiny base: it learns the concept and keeps what the model knew, five times as much damages it"
)
AUTHOR = later(
    "the 0.001 of the scaled optimizers' author for LoRA (OneTrainer PR 1344), whose steps are 3.3 times larger here "
    "in a model as wide as SDXL, and the same for all methods as on the tiny base; not measured here on a large model"
)
AUTHOR_OFT = later(
    "Scaled OFT's author's on SDXL and Flux.2 Klein 4B (OneTrainer PR 1315), not measured here on a large model"
)
LORA_EXAMPLE = later(
    "that of diffusers' example script for a LoRA on SDXL with AdamW, not measured here on a large model"
)
FULL_EXAMPLE = later("that of diffusers' example script for SD 1.x with AdamW, not measured here on a large model")
CARRIED = later(
    "a quarter of the 4e-4 that keeps what the tiny base knew, so that a step in a model as wide as SDXL is no larger; "
    "not measured elsewhere"
)
LION_PAPER = later("a fifth of AdamW's, as Lion's paper finds three to ten times less best (arXiv 2302.06675)")
PRODIGY_PAPER = later("Prodigy finds the rate itself and takes 1 (arXiv 2306.06101)")

ADAM, SCALED, SIGN, PRODIGY, STIEFEL, RITE = "Adam", "scaled", "sign", "Prodigy", "Stiefel", "RITE"
FAMILIES = {
    **dict.fromkeys(
        (Optimizer.ADAMW, Optimizer.ADAM, Optimizer.ADAMW_8BIT, Optimizer.ADAM_8BIT, Optimizer.ADAMW_ADV,
         Optimizer.ADOPT_ADV), ADAM),
    **dict.fromkeys((Optimizer.LION_ADV, Optimizer.LION_8BIT, Optimizer.SIGNSGD_ADV), SIGN),
    **dict.fromkeys((Optimizer.PRODIGY, Optimizer.PRODIGY_ADV), PRODIGY),
    Optimizer.STIEFEL_LORA: STIEFEL,
    Optimizer.LORA_RITE: RITE,
}  # fmt: skip
LORA, DORA, OFT, DORA_OFT, FULL = "LoRA", "DoRA", "OFT", "DoRA-OFT", "full"


@dataclass(frozen=True)
class Rate:
    """A learning rate, and what it was measured on or whose it is, in English."""

    value: float
    source: str


# (what is trained, kind of optimizer) -> rate on the tiny base
TINY_RATES: dict[tuple[str, str], Rate] = {
    (LORA, ADAM): Rate(2e-3, MEASURED),
    (LORA, SCALED): Rate(1.7e-2, MEASURED),
    (LORA, STIEFEL): Rate(3.4e-2, MEASURED),
    (LORA, RITE): Rate(1.7e-2, MEASURED),
    (DORA, ADAM): Rate(2e-3, MEASURED),
    (DORA, SCALED): Rate(1.7e-2, MEASURED),
    (OFT, ADAM): Rate(3e-2, MEASURED),
    (OFT, SCALED): Rate(1.7e-2, MEASURED),
    (DORA_OFT, SCALED): Rate(1.7e-2, MEASURED),
    (FULL, SCALED): Rate(4e-4, KEPT),
}
# the same on any other model
RATES: dict[tuple[str, str], Rate] = {
    (LORA, ADAM): Rate(1e-4, LORA_EXAMPLE),
    (DORA, ADAM): Rate(1e-4, LORA_EXAMPLE),
    (OFT, ADAM): Rate(1e-3, AUTHOR_OFT),
    (FULL, ADAM): Rate(1e-5, FULL_EXAMPLE),
    (LORA, SIGN): Rate(2e-5, LION_PAPER),
    (DORA, SIGN): Rate(2e-5, LION_PAPER),
    (FULL, SIGN): Rate(2e-6, LION_PAPER),
    (LORA, SCALED): Rate(3e-4, AUTHOR),
    (DORA, SCALED): Rate(3e-4, AUTHOR),
    (OFT, SCALED): Rate(3e-4, AUTHOR),
    (DORA_OFT, SCALED): Rate(3e-4, AUTHOR),
    (FULL, SCALED): Rate(1e-4, CARRIED),
}


def rate_for(config: TrainConfig) -> Rate | None:
    """The learning rate that goes with what is trained and by which optimizer; None where nobody has measured one."""
    family = FAMILIES.get(config.optimizer.optimizer, "")
    if config.optimizer.scaled_optm and family not in (PRODIGY, STIEFEL, RITE):
        family = SCALED
    if family == PRODIGY:
        return Rate(1.0, PRODIGY_PAPER)
    on_tiny = Path(config.base_model_name).name == TINY_BASE
    return (TINY_RATES if on_tiny else RATES).get((_trained(config), family))


def _trained(config: TrainConfig) -> str:
    """What is trained, in the words of the tables; empty for what they do not have."""
    if config.training_method == TrainingMethod.FINE_TUNE:
        return FULL
    if config.training_method != TrainingMethod.LORA:
        return ""
    names = {PeftType.LORA: (LORA, DORA), PeftType.OFT_2: (OFT, DORA_OFT)}
    return names[config.peft_type][config.lora_decompose] if config.peft_type in names else ""


# -- what goes with a choice ------------------------------------------------------------------------------------------

ADAPTER_FORMATS = frozenset(kind for kind in ModelFormat if kind.name.endswith("_LORA")) | {ModelFormat.INTERNAL}


def companions(config: TrainConfig) -> dict[str, Any]:
    """Path -> value of every option that should follow the method, the adapter and the optimizer, and does not yet."""
    rate, own = rate_for(config), config.optimizer
    values: dict[str, Any] = {} if rate is None else {"learning_rate": rate.value}
    if config.training_method == TrainingMethod.LORA:
        stiefel = own.optimizer == Optimizer.STIEFEL_LORA
        if config.peft_type == PeftType.LORA:
            if stiefel:
                values |= {"lora_init": LoRAInit.ORTHONORMAL, "lora_init_scale": 1.0}
            elif config.lora_init == LoRAInit.ORTHONORMAL:
                values["lora_init"] = default_of(TrainConfig, "lora_init")
        if config.peft_type != PeftType.OFT_2 and (stiefel or own.scaled_optm):
            values["lora_alpha"] = float(config.lora_rank)
        if config.peft_type == PeftType.OFT_2 and own.scaled_optm:
            values |= {"oft_scaled": True, "oft_scale_mode": OFTScaleMode.ELEMENTS}
    if not _fits(config):
        values["output_model_format"] = ModelFormat.SAFETENSORS
    return {path: value for path, value in values.items() if _read(config, path) != value}


def _fits(config: TrainConfig) -> bool:
    """Whether the output format is one of the training method's."""
    chosen, method = config.output_model_format, config.training_method
    if chosen == ModelFormat.SAFETENSORS:
        return True
    return method != TrainingMethod.EMBEDDING and (chosen in ADAPTER_FORMATS) == (method == TrainingMethod.LORA)


def _read(config: TrainConfig, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
    return value


# -- one-click settings -----------------------------------------------------------------------------------------------

# per step, whatever the learning rate
FISHER_DECAY = 1e-6
SLOWEST_BETA2 = 0.99
CENTERED_DECAY, STANDARD_DECAY = 1e-4, 1e-6
# per step with scaled steps, as a share of the rate, since weights come as far as pull and steps are in balance
CENTERED_SHARE = 0.6


@dataclass(frozen=True)
class Recommendation:
    """Settings that belong together.

    Attributes:
        title: on its button, in English.
        needs: options that the optimizer must have.
        asks: why it is of no use for a config; empty if it is of use.
        values: path -> value, for a config.
        help: what it does, and what its numbers were measured on or whose they are, for a config.

    All three are asked with an optimizer that has the options of `needs`.
    """

    title: str
    needs: tuple[str, ...]
    asks: Callable[[TrainConfig], str]
    values: Callable[[TrainConfig], dict[str, Any]]
    help: Callable[[TrainConfig], str]


def _always(config: TrainConfig) -> str:
    return ""


def _with_scaled_steps(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"scaled_optm": True})})


def _scaled(config: TrainConfig) -> dict[str, Any]:
    return {"optimizer.scaled_optm": True, **companions(_with_scaled_steps(config))}


def _asks_for_rate(config: TrainConfig) -> str:
    return "" if rate_for(_with_scaled_steps(config)) else tr("nobody has measured a rate for what is trained")


def _scaled_help(config: TrainConfig) -> str:
    rate = rate_for(_with_scaled_steps(config))
    text = tr(
        "Steps that do not depend on an adapter's rank, and alpha equal to the rank. How large a rate is best depends "
        "on how many steps there are."
    )
    return f"{text} {tr('The rate {rate:g} is {source}.', rate=rate.value, source=tr(rate.source))}" if rate else text


def _per_step(config: TrainConfig, decay: float) -> float:
    """The option's value for a decay per step: without scaled steps it is multiplied by the learning rate."""
    return decay if config.optimizer.scaled_optm or not config.learning_rate else decay / config.learning_rate


def _fisher(config: TrainConfig) -> dict[str, Any]:
    own = config.optimizer
    values: dict[str, Any] = {"optimizer.fisher_wd": True, "optimizer.weight_decay": _per_step(config, FISHER_DECAY)}
    if not own.kourkoutas_beta and (own.beta2 is None or own.beta2 > SLOWEST_BETA2):
        values["optimizer.beta2"] = SLOWEST_BETA2
    return values


def _starts_from_weights(config: TrainConfig) -> str:
    """Centered decay is decay toward zero where what is trained starts there."""
    if config.training_method == TrainingMethod.FINE_TUNE:
        return ""
    decomposed = config.training_method == TrainingMethod.LORA and config.lora_decompose
    return "" if decomposed else tr("it is for DoRA and full fine-tuning")


def _centered(config: TrainConfig) -> dict[str, Any]:
    if config.optimizer.scaled_optm:
        pull = float(f"{CENTERED_SHARE * config.learning_rate:.3g}")
    else:
        pull = _per_step(config, CENTERED_DECAY)
    return {"optimizer.centered_wd": pull, "optimizer.weight_decay": _per_step(config, STANDARD_DECAY)}


def _centered_help(config: TrainConfig) -> str:
    if config.optimizer.scaled_optm:
        return tr(
            "A pull toward the original weights of {share:g} of the learning rate per step: on the tiny base, with "
            "scaled steps, it keeps more of what the model knew than a lower learning rate does, and costs 3 to 4 % of "
            "what is learned (docs/results.md). More keeps more and learns less. Not measured on a large model.",
            share=CENTERED_SHARE,
        )
    return tr(
        "A centered decay of 1e-4 per step holds the weights near the original model; a standard one of 1e-6 is all "
        "that is left toward zero. The way is that of OneTrainer PR 1344, which names no numbers; these are ours, and "
        "without scaled steps nobody has measured how much they keep."
    )


RECOMMENDATIONS = (
    Recommendation(later("Scaled, α = rank"), ("scaled_optm",), _asks_for_rate, _scaled, _scaled_help),
    Recommendation(
        later("Fisher 1e-6"),
        ("fisher_wd", "beta2"),
        _always,
        _fisher,
        lambda config: tr(
            "Fisher weight decay of 1e-6 per step, whatever the learning rate, and beta 2 of at most 0.99, so that it "
            "follows the gradients: its author's starting point (OneTrainer PR 1344). What it does on the tiny base is "
            "in docs/recommended.md."
        ),
    ),
    Recommendation(
        later("Centered decay: keep what the model knew"),
        ("centered_wd", "weight_decay"),
        _starts_from_weights,
        _centered,
        _centered_help,
    ),
)
SCALED_OPTIMIZER = Optimizer.ADAMW_ADV
"""Taken where the optimizer at hand has not what a recommendation needs."""
