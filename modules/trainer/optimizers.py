"""What is behind the `Optimizer` enum: the rules of our own engine, and optimizers of well-kept libraries."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from modules.trainer.library_optimizers import LIBRARY, LibraryOptimizer
from modules.trainer.library_options import ENCODER_ADAM_RATES
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainOptimizerConfig import OFF, TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.found_problems import raise_problems
from modules.util.UserError import UserError
from modules.util.World import ALONE, World
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.lora_start import make_orthonormal
from scaled_optim.rules.registry import RULES

import torch


@dataclass(frozen=True)
class EngineOptimizer:
    """One rule of our own engine; the attributes are those of `LibraryOptimizer`."""

    rule: str
    one_rate: bool = False
    schedule_free: bool = False

    @property
    def idle(self) -> Mapping[str, tuple | None]:
        """Numbers that belong to a switch which the rule has not; OneTrainer's files hold them beside the switch."""
        defaults = RULES[self.rule].defaults
        return {
            number: None
            for switch, numbers in (("use_AdEMAMix", ("beta3_ema", "alpha")), ("Simplified_AdEMAMix", ("alpha_grad",)))
            for number in numbers
            if switch not in defaults
        }

    @property
    def defaults(self) -> Mapping[str, Any]:
        defaults = RULES[self.rule].defaults
        encoders = dict.fromkeys(ENCODER_ADAM_RATES.values()) if "muon_adam_lr" in defaults else {}
        runs = {"compile": False, "fused_kernels": True, "fused_back_pass": False, "shared": False}
        return {**defaults, **encoders, **runs}

    def make(
        self, name: Optimizer, groups: list[dict[str, Any]], options: dict[str, Any], seed: int, world: World = ALONE
    ) -> Any:
        # what the trainer does with it does not concern the step itself
        options.pop("fused_back_pass")
        shared = options.pop("shared") and not world.alone
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
            return BatchedOptimizer(
                groups, self.rule, groups[0]["lr"], seed=seed, kernels=kernels, shared=shared, **options
            )
        except ValueError as error:
            raise UserError(f"optimizer.{error}") from error


ENGINE = {Optimizer(name): EngineOptimizer(name, one_rate=name == "PRODIGY_ADV") for name in RULES}
OPTIMIZERS: dict[Optimizer, LibraryOptimizer | EngineOptimizer] = {**LIBRARY, **ENGINE}

# Steps between two looks at the size of updates; each costs a pass over them and a wait for the device.
WATCH_EVERY = 10

NO_OPTIMIZERS = {
    "percentile_clipping": "bitsandbytes has given it up; clip_grad_norm limits gradients",
    "block_wise": "bitsandbytes always quantizes state in blocks",
    "bias_correction": "bitsandbytes' LAMB always corrects its moments",
    "adam_w_mode": "bitsandbytes' LAMB always decays weights as AdamW does",
    "fsdp_in_use": "whether weights are spread over GPUs is said by shard_weights of the run",
    "differentiable": "a run takes no gradient of its steps",
    "beta1_warmup": "it belongs to older versions of adv_optm",
    "min_beta1": "it belongs to older versions of adv_optm",
}
"""Options that no optimizer has -> why."""


def option_problems(config: TrainOptimizerConfig, rounds: bool = True) -> list[Problem]:
    """Each option that is set and that the optimizer has not.

    Args:
        config: of the optimizer.
        rounds: whether trained weights have fewer bits than float32. Without, how they are rounded does not matter.
    """
    entry, found = OPTIMIZERS[config.optimizer], []
    for name, value in config.options().items():
        if name == "stochastic_rounding" and not rounds:
            continue
        if name not in entry.defaults and not _is_idle(entry, name, value):
            takers = [str(other) for other, row in OPTIMIZERS.items() if name in row.defaults]
            who = f"it is an option of {', '.join(takers)}" if takers else NO_OPTIMIZERS[name]
            text = f"{config.optimizer} has no such option; {who}. Set it to null"
            found.append(Problem(f"optimizer.{name}", text, (Remedy.of({f"optimizer.{name}": None}),)))
    return found


def _is_idle(entry: LibraryOptimizer | EngineOptimizer, name: str, value: Any) -> bool:
    """Whether nothing is lost though the optimizer has no such option."""
    if value is None or name not in entry.idle:
        return value in OFF
    values = entry.idle[name]
    return values is None or value in values


def create_optimizer(
    config: TrainOptimizerConfig, groups: Sequence[dict[str, Any]], seed: int = 0, world: World = ALONE
) -> torch.optim.Optimizer:
    """The optimizer of the config over parameter groups with `params`, `lr` and `name`.

    Args:
        config: its options.
        groups: what it steps.
        seed: of its random numbers.
        world: the processes that may share it.

    Raises:
        UserError: if its library is missing, or an option is set that it has not.
    """
    groups = [{**group, "params": list(group["params"])} for group in groups]
    rounds = any(parameter.element_size() < 4 for group in groups for parameter in group["params"])
    raise_problems(option_problems(config, rounds))
    entry, given = OPTIMIZERS[config.optimizer], config.options()
    if entry.one_rate and len({group["lr"] for group in groups}) > 1:
        rates = ", ".join(f"{group['name']} {group['lr']:g}" for group in groups)
        raise UserError(
            f"learning_rate: {config.optimizer} finds one learning rate for everything, found {rates}. "
            "Set the components' own learning_rate to null."
        )
    options = {name: default if given[name] is None else given[name] for name, default in entry.defaults.items()}
    own = (world,) if isinstance(entry, EngineOptimizer) else ()
    optimizer = entry.make(config.optimizer, groups, options, seed, *own)
    if entry.schedule_free:
        optimizer.train()
    return optimizer


def whole_state(optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any] | None:
    """The state of all parameters in the process that leads, None in the others; to be called in all of them."""
    if isinstance(optimizer, BatchedOptimizer) and optimizer.sharing is not None:
        return optimizer.whole_state_dict()
    return optimizer.state_dict() if world.leads else None


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


def check_same_optimizer(own: Optimizer, config: Mapping[str, Any], backup: Path) -> None:
    """Libraries load the state of another optimizer without a word, and fail later, or train with it.

    Args:
        own: of the run.
        config: of the backup.
        backup: its folder.

    Raises:
        UserError: the backup is of another optimizer, and `own` is one of a library.
    """
    before = dict(config.get("optimizer") or {}).get("optimizer", own)
    if before != own and not isinstance(OPTIMIZERS[own], EngineOptimizer):
        raise UserError(
            f"The backup {backup} holds what {before} remembers, but the config's optimizer.optimizer is {own}. Set it "
            f"to {before}, or continue_last_backup to false."
        )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict`, but options stay those of now, tensors keep the dtype in which they were stored, and
    none of `state` is held afterwards.

    torch takes options from the state, converts state to the weights' dtype, which would round float32 state of
    bfloat16 weights, and keeps the tensors that need no conversion. Our own engine does none of this.
    """
    if isinstance(optimizer, BatchedOptimizer):
        optimizer.load_state_dict(dict(state))
        return
    names = optimizer.option_names
    options = [{key: group[key] for key in group.keys() & names} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, stored in state["state"].items():
        own = optimizer.state[parameters[index]]
        for name, value in stored.items():
            if isinstance(value, torch.Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device, copy=True)
    foreign = {tensor.untyped_storage().data_ptr() for tensor in _tensors(dict(state))}
    for own in (*optimizer.state.values(), *optimizer.param_groups):
        own.update({name: _copied(value, foreign) for name, value in own.items() if name != "params"})


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _copied(value: Any, foreign: set[int]) -> Any:
    """A value of an optimizer's state in which tensors that stand on `foreign` memory are copied."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.untyped_storage().data_ptr() in foreign else value
    if isinstance(value, dict):
        value.update({key: _copied(item, foreign) for key, item in value.items()})
        return value
    if type(value) in (list, tuple):
        return type(value)(_copied(item, foreign) for item in value)
    return value


def watch_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Lets an optimizer of ours take notes in the first step and every few steps; `step` counts from 1."""
    if isinstance(optimizer, BatchedOptimizer):
        optimizer.watch = step == 1 or step % WATCH_EVERY == 0


def read_statistics(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What an optimizer of ours noted of the last step, by name; nothing if it took no notes."""
    if isinstance(optimizer, BatchedOptimizer) and optimizer.watch:
        return optimizer.read_statistics()
    return {}
