"""What is behind the `Optimizer` enum: the rules of our own engine, and optimizers of well-kept libraries."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainOptimizerConfig import OFF, TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.found_problems import raise_problems
from modules.util.UserError import UserError
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.lora_start import make_orthonormal
from scaled_optim.rules.registry import RULES

import torch


def _betas(options: dict[str, Any]) -> dict[str, Any]:
    """beta1 and beta2 as the pair that most libraries take."""
    beta1, beta2 = options.pop("beta1"), options.pop("beta2")
    return {**options, "betas": (beta1, beta2)}


def _adam(options: dict[str, Any]) -> dict[str, Any]:
    """The same, and torch's fused kernel unless another way is asked for: on a CPU it takes a quarter of the time."""
    if options["fused"] is None and options["foreach"] is None and not options["differentiable"]:
        options["fused"] = True
    return _betas(options)


def _adafactor(options: dict[str, Any]) -> dict[str, Any]:
    """Adafactor's two epsilons, and no learning rate of its own where it makes one."""
    options["eps"] = (options.pop("eps"), options.pop("eps2"))
    return options


@dataclass(frozen=True)
class LibraryOptimizer:
    """One optimizer of a library.

    Attributes:
        path: module and class.
        defaults: every option that it supports, by its key in the config, with its default.
        convert: from these options to the class's arguments.
        schedule_free: whether it keeps averaged weights that `eval()` swaps in.
        one_rate: whether all groups must have the same learning rate.
        package: what to install where the import fails.
    """

    path: str
    defaults: Mapping[str, Any]
    convert: Callable[[dict[str, Any]], dict[str, Any]] = dict
    schedule_free: bool = False
    one_rate: bool = False
    package: str = "the packages of requirements.txt"

    def load(self) -> type[torch.optim.Optimizer]:
        module, name = self.path.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    def make(self, name: Optimizer, groups: list[dict[str, Any]], options: dict[str, Any], seed: int) -> Any:
        try:
            kind = self.load()
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"optimizer.optimizer: {name} needs {self.package}, which can't be loaded here: {error}"
            ) from error
        try:
            return kind(groups, **self.convert(options))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"optimizer: {name} refuses its options: {error}") from error


# of a Muon's auxiliary Adam, by the name of the parameter group
ENCODER_ADAM_RATES = {"text_encoder": "muon_te1_adam_lr", "text_encoder_2": "muon_te2_adam_lr"}


@dataclass(frozen=True)
class EngineOptimizer:
    """One rule of our own engine; the attributes are those of `LibraryOptimizer`."""

    rule: str
    one_rate: bool = False
    schedule_free: bool = False

    @property
    def defaults(self) -> Mapping[str, Any]:
        defaults = RULES[self.rule].defaults
        encoders = dict.fromkeys(ENCODER_ADAM_RATES.values()) if "muon_adam_lr" in defaults else {}
        return {**defaults, **encoders, "compile": False, "fused_kernels": True, "fused_back_pass": False}

    def make(self, name: Optimizer, groups: list[dict[str, Any]], options: dict[str, Any], seed: int) -> Any:
        # what the trainer does with it does not concern the step itself
        options.pop("fused_back_pass")
        kernels = "auto" if options.pop("fused_kernels") else "never"
        for group in groups:
            key = ENCODER_ADAM_RATES.get(group.get("name"))
            if options.get(key) is not None:
                group["muon_adam_lr"] = options[key]
        options = {key: value for key, value in options.items() if key not in ENCODER_ADAM_RATES.values()}
        # enum values are told by their names, which are what the engine knows
        options = {key: str(value) if isinstance(value, StrEnum) else value for key, value in options.items()}
        if isinstance(options.get("muon_adam_config"), TrainOptimizerConfig):
            given = options["muon_adam_config"].options()
            options["muon_adam_config"] = {key: value for key, value in given.items() if value not in OFF}
        if RULES[self.rule].orthonormal_up:
            make_orthonormal(groups)
        try:
            return BatchedOptimizer(groups, self.rule, groups[0]["lr"], seed=seed, kernels=kernels, **options)
        except ValueError as error:
            raise UserError(f"optimizer.{error}") from error


ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
TORCH = {"foreach": None, "fused": None, "maximize": False}
BITS = {"min_8bit_size": 4096, "is_paged": False}

LIBRARY: dict[Optimizer, LibraryOptimizer] = {
    Optimizer.ADAMW: LibraryOptimizer(
        "torch.optim.AdamW",
        {**ADAM, **TORCH, "weight_decay": 0.01, "amsgrad": False, "capturable": False, "differentiable": False},
        _adam,
    ),
    Optimizer.ADAM: LibraryOptimizer(
        "torch.optim.Adam",
        {**ADAM, **TORCH, "weight_decay": 0.0, "amsgrad": False, "capturable": False, "differentiable": False},
        _adam,
    ),
    Optimizer.SGD: LibraryOptimizer(
        "torch.optim.SGD",
        {**TORCH, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "differentiable": False},
    ),
    Optimizer.ADAGRAD: LibraryOptimizer(
        "torch.optim.Adagrad",
        {**TORCH, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0, "eps": 1e-10},
    ),
    Optimizer.RMSPROP: LibraryOptimizer(
        "torch.optim.RMSprop",
        {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False, "foreach": None},
    ),
    Optimizer.ADAFACTOR: LibraryOptimizer(
        "transformers.optimization.Adafactor",
        {
            "eps": 1e-30,
            "eps2": 1e-3,
            "clip_threshold": 1.0,
            "decay_rate": -0.8,
            "beta1": None,
            "weight_decay": 0.0,
            "scale_parameter": False,
            "relative_step": False,
            "warmup_init": False,
        },
        _adafactor,
    ),
    Optimizer.PRODIGY: LibraryOptimizer(
        "prodigyopt.Prodigy",
        {
            "beta1": 0.9,
            "beta2": 0.999,
            "beta3": None,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "decouple": True,
            "use_bias_correction": False,
            "safeguard_warmup": False,
            "d0": 1e-6,
            "d_coef": 1.0,
            "growth_rate": float("inf"),
            "fsdp_in_use": False,
            "slice_p": 1,
        },
        _betas,
        one_rate=True,
    ),
    Optimizer.SCHEDULE_FREE_ADAMW: LibraryOptimizer(
        "schedulefree.AdamWScheduleFree",
        {**ADAM, "weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0, "foreach": True},
        _betas,
        schedule_free=True,
    ),
    Optimizer.SCHEDULE_FREE_SGD: LibraryOptimizer(
        "schedulefree.SGDScheduleFree",
        {"momentum": 0.9, "weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0, "foreach": True},
        schedule_free=True,
    ),
    Optimizer.ADAMW_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.AdamW8bit", {**ADAM, **BITS, "weight_decay": 0.01}, _betas, package="bitsandbytes"
    ),
    Optimizer.ADAM_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.Adam8bit", {**ADAM, **BITS, "weight_decay": 0.0}, _betas, package="bitsandbytes"
    ),
    Optimizer.LION_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.Lion8bit",
        {"beta1": 0.9, "beta2": 0.99, **BITS, "weight_decay": 0.0},
        _betas,
        package="bitsandbytes",
    ),
}

ENGINE = {Optimizer(name): EngineOptimizer(name, one_rate=name == "PRODIGY_ADV") for name in RULES}
OPTIMIZERS: dict[Optimizer, LibraryOptimizer | EngineOptimizer] = {**LIBRARY, **ENGINE}

# Steps between two looks at the size of updates; each costs a pass over them and a wait for the device.
WATCH_EVERY = 10


def option_problems(config: TrainOptimizerConfig) -> list[Problem]:
    """Whether there is such an optimizer, and each of its options that is set and that it has not."""
    entry = OPTIMIZERS.get(config.optimizer)
    if entry is None:
        text = f"{config.optimizer} is not supported yet; expected one of {', '.join(OPTIMIZERS)}"
        return [Problem("optimizer.optimizer", text, (Remedy.of({"optimizer.optimizer": "ADAMW"}),))]
    found = []
    for name, value in config.options().items():
        if name not in entry.defaults and value not in OFF:
            takers = [str(other) for other, row in OPTIMIZERS.items() if name in row.defaults]
            who = f"it is an option of {', '.join(takers)}" if takers else "no supported optimizer has it yet"
            text = f"{config.optimizer} has no such option; {who}. Set it to null"
            found.append(Problem(f"optimizer.{name}", text, (Remedy.of({f"optimizer.{name}": None}),)))
    return found


def create_optimizer(
    config: TrainOptimizerConfig, groups: Sequence[dict[str, Any]], seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer of the config over parameter groups with `params`, `lr` and `name`.

    Raises:
        UserError: if the optimizer is not supported, its library is missing, or an option is set that it has not.
    """
    raise_problems(option_problems(config))
    entry, given = OPTIMIZERS[config.optimizer], config.options()
    if entry.one_rate and len({group["lr"] for group in groups}) > 1:
        rates = ", ".join(f"{group['name']} {group['lr']:g}" for group in groups)
        raise UserError(
            f"learning_rate: {config.optimizer} finds one learning rate for everything, found {rates}. "
            "Set the parts' own learning_rate to null."
        )
    options = {name: default if given[name] is None else given[name] for name, default in entry.defaults.items()}
    optimizer = entry.make(config.optimizer, [dict(group) for group in groups], options, seed)
    if entry.schedule_free:
        optimizer.train()
    return optimizer


def optimizer_notes(optimizer: torch.optim.Optimizer) -> list[str]:
    """What a run should be told once of how its parameters are optimized.

    Raises:
        UserError: an optimizer of ours can't step a parameter.
    """
    if not isinstance(optimizer, BatchedOptimizer):
        return []
    try:
        return optimizer.notes
    except ValueError as error:
        raise UserError(str(error)) from error


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict`, but every tensor keeps the dtype in which it was stored.

    torch converts state to the weights' dtype, which would round float32 state of bfloat16 weights. Our own engine
    does not.
    """
    optimizer.load_state_dict(dict(state))
    if isinstance(optimizer, BatchedOptimizer):
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, stored in state["state"].items():
        own = optimizer.state[parameters[index]]
        for name, value in stored.items():
            if isinstance(value, torch.Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device, copy=True)


def watch_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Lets an optimizer of ours take notes in the first step and every few steps; `step` counts from 1."""
    if isinstance(optimizer, BatchedOptimizer):
        optimizer.watch = step == 1 or step % WATCH_EVERY == 0


def read_statistics(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What an optimizer of ours noted of the last step, by name; nothing if it took no notes."""
    if isinstance(optimizer, BatchedOptimizer) and optimizer.watch:
        return optimizer.read_statistics()
    return {}
