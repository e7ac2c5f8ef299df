"""What is wrong with a run's optimizer, before anything is made for it."""

from collections.abc import Callable, Mapping
from typing import Any

from modules.trainer.FusedBackward import check_fused
from modules.trainer.optimizers import OPTIMIZERS, EngineOptimizer, create_optimizer, option_problems
from modules.trainer.trained_formats import half_precision_problems, trained_formats
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import OFF, TrainOptimizerConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.found_problems import found
from modules.util.UserError import UserError
from scaled_optim.rules.registry import RULES

import torch

AUX = "muon_adam_config"


def optimizer_problems(
    config: TrainConfig, warn: Callable[[str], None], rates: Mapping[str, float] | None = None
) -> list[Problem]:
    """Everything that an optimizer would refuse, of its own options and of the rest of the run.

    Args:
        config: of the run.
        warn: gets what a run should know of the fused backward pass.
        rates: learning rate of each set that is trained, by name; None: options alone are looked at.
    """
    # how float32 is rounded does not matter
    rounds = any(data_type != DataType.FLOAT_32 for data_type in trained_formats(config, rates).values())
    problems = option_problems(config.optimizer, rounds)
    problems += half_precision_problems(config)
    problems += _rule_problems(config)
    problems += found(_check_fused, config, warn)
    problems += found(check_has_pairs, config)
    problems += found(_check_zeros_move, config)
    if not problems and rates:
        # a library tells only when it is made
        groups = [{"params": [torch.zeros(2, 2)], "lr": rate, "name": name} for name, rate in rates.items()]
        problems += found(create_optimizer, config.optimizer, groups, config.seed, path="optimizer")
    return problems


def rule_options(config: TrainConfig) -> dict[str, Any]:
    """All options of a rule of ours, as the engine gets them from a config."""
    rule = RULES[str(config.optimizer.optimizer)]
    options = dict(rule.defaults)
    for name, value in config.optimizer.options().items():
        if name in options and value is not None:
            options[name] = str(value) if isinstance(value, str) else value
    if isinstance(options.get(AUX), TrainOptimizerConfig):
        options[AUX] = {key: value for key, value in options[AUX].options().items() if value not in OFF}
    return options


def _rule_problems(config: TrainConfig) -> list[Problem]:
    """What the rule says of its options, alone and together."""
    rule = RULES.get(str(config.optimizer.optimizer))
    if rule is None:
        return []
    try:
        rule.check(rule_options(config))
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        return [Problem(f"optimizer.{name}", reason.rstrip("."))]
    return []


def _check_fused(config: TrainConfig, warn: Callable[[str], None]) -> None:
    if config.optimizer.fused_back_pass and (note := check_fused(config)):
        warn(note)


def _check_zeros_move(config: TrainConfig) -> None:
    """Raises UserError if steps are bounded by the norm of weights that start at zero, as those of adapters do."""
    own, entry = config.optimizer, OPTIMIZERS[config.optimizer.optimizer]
    if config.training_method != TrainingMethod.LORA or "max_unorm" not in entry.defaults:
        return
    bound = entry.defaults["max_unorm"] if own.max_unorm is None else own.max_unorm
    if bound and not config.lora_model_name:
        raise UserError(
            f"optimizer.max_unorm: {own.optimizer} bounds steps by {bound:g} times the norm of the weights, and a "
            "fresh adapter has weights that are zero, which would never move. Set it to 0, or choose another "
            "optimizer.",
            Remedy.of({"optimizer.max_unorm": 0.0}),
        )


def check_has_pairs(config: TrainConfig) -> None:
    """Raises UserError if the optimizer steps pairs of factors and full fine-tuning, which has none, is wished for."""
    entry, kind = OPTIMIZERS[config.optimizer.optimizer], config.optimizer.optimizer
    if config.training_method != TrainingMethod.FINE_TUNE or not isinstance(entry, EngineOptimizer):
        return
    if RULES[entry.rule].needs_pairs:
        raise UserError(
            f"optimizer.optimizer: {kind} steps the two factors of LoRAs, of which FINE_TUNE has none. "
            "Choose another one, such as ADAMW_ADV.",
            Remedy.of({"optimizer.optimizer": "ADAMW_ADV"}),
        )


def check_lora_options(config: TrainConfig, warn: Callable[[str], None]) -> None:
    """What an optimizer of LoRA pairs asks of the adapter's options.

    Args:
        config: of the run.
        warn: gets a line where the optimizer works, but not as it is meant to.

    Raises:
        UserError: it needs orthonormal start values and would not get them.
    """
    entry, kind = OPTIMIZERS[config.optimizer.optimizer], config.optimizer.optimizer
    lora = config.training_method == TrainingMethod.LORA and config.peft_type == PeftType.LORA
    if not isinstance(entry, EngineOptimizer) or not RULES[entry.rule].orthonormal_up or not lora:
        return
    if not config.lora_model_name:
        if config.lora_init != LoRAInit.ORTHONORMAL:
            raise UserError(
                f"lora_init: found {config.lora_init}, but {kind} keeps the columns of the up matrix orthonormal from "
                "the start on. Set it to ORTHONORMAL.",
                Remedy.of({"lora_init": "ORTHONORMAL"}),
            )
        if config.lora_init_scale != 1:
            raise UserError(
                f"lora_init_scale: found {config.lora_init_scale:g}, but {kind} needs an up matrix with columns of "
                "length 1. Set it to 1.",
                Remedy.of({"lora_init_scale": 1.0}),
            )
    if config.lora_alpha != config.lora_rank:
        warn(
            f"lora_alpha: found {config.lora_alpha:g} with lora_rank {config.lora_rank}. {kind}'s learning rate does "
            "not depend on the rank only where alpha is the rank; set them equal."
        )
