"""Makes our optimizers where OneTrainer makes its own."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from scaled_onetrainer.describe import describe_rest
from scaled_onetrainer.fields import options_in
from scaled_onetrainer.hooks.config_fields import check_names
from scaled_onetrainer.members import MEMBERS, rule_of
from scaled_onetrainer.PluginOptimizer import PluginOptimizer
from scaled_onetrainer.run_hook import BROKEN, HookError, place
from scaled_optim.lora_start import make_orthonormal
from scaled_optim.rules.registry import RULES

import torch


def apply(module: ModuleType) -> None:
    """`create_optimizer` makes our optimizers for our names, and is what it was for all others."""
    theirs = place(module, "create_optimizer")

    def create_optimizer(
        parameter_group_collection: Any, state_dict: dict[str, Any] | None, config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if rule_of(config.optimizer.optimizer) is None:
            check_names(config.optimizer)
            return theirs(parameter_group_collection, state_dict, config, *args, **kwargs)
        return make_optimizer(parameter_group_collection, state_dict, config)

    module.create_optimizer = create_optimizer


def make_optimizer(collection: Any, state_dict: dict[str, Any] | None, config: Any) -> PluginOptimizer:
    """The optimizer that a config names, with the state of a backup.

    Args:
        collection: a `NamedParameterGroupCollection`.
        state_dict: as OneTrainer's backup holds it, None: there is none.
        config: a `TrainConfig`.

    Raises:
        ValueError: a value that is not allowed; the message begins with the key.
        HookError: this checkout has no place for what the run needs.
    """
    if BROKEN:
        raise HookError(" ".join(BROKEN.values()))
    optimizer, fused = config.optimizer, config.optimizer.fused_back_pass
    offloaded = [
        component for component in config.model_part_configs() if component.train and component.offload_fraction > 0
    ]
    if offloaded and str(config.training_method) == "FINE_TUNE" and not fused:
        raise ValueError(
            "optimizer.fused_back_pass: found false, expected true, as layers of a trained component are offloaded: "
            "they are away again before a step after the backward pass. Switch it on, or set offload_fraction to 0."
        )
    name = str(optimizer.optimizer)
    groups = collection.parameters_for_optimizer(config)
    describe_rest(groups, collection.unique_name_mapping)
    rule = RULES[MEMBERS[name]]
    if rule.orthonormal_up:
        make_orthonormal(groups)
    if "muon_adam_lr" in rule.defaults:
        set_encoder_rates(groups, optimizer)
    made = PluginOptimizer(
        groups,
        rule,
        config.learning_rate,
        title=name,
        compile=optimizer.compile,
        # layers may be offloaded when state is made
        state_device=torch.empty(0, device=config.train_device).device,
        kernels="auto" if optimizer.fused_kernels else "never",
        **options_in(name, vars(optimizer)),
    )
    made.watch = bool(config.tensorboard)
    if state_dict is not None:
        made.load_state_dict(state_dict)
    return made


def set_encoder_rates(groups: Sequence[Mapping[str, Any]], config: Any) -> None:
    """Gives the groups of text encoders the learning rates that the auxiliary Adam has for them."""
    for group in groups:
        # OneTrainer's names: text_encoder, text_encoder_2, and with _lora at the end those of adapters
        component = group["name"].removesuffix("_lora")
        rate = config.muon_te2_adam_lr if component == "text_encoder_2" else config.muon_te1_adam_lr
        if component.startswith("text_encoder") and rate is not None:
            group["muon_adam_lr"] = rate
