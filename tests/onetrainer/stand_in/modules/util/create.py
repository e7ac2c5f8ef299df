import importlib

from modules.util.enum.LearningRateScheduler import LearningRateScheduler
from modules.util.enum.Optimizer import Optimizer

import torch


def create_optimizer(parameter_group_collection, state_dict, config, layer_key_fn=None):
    kinds = {Optimizer.SGD: torch.optim.SGD, Optimizer.ADAMW: torch.optim.AdamW, Optimizer.ADAMW_ADV: torch.optim.AdamW}
    groups = parameter_group_collection.parameters_for_optimizer(config)
    made = kinds[config.optimizer.optimizer](groups, lr=config.learning_rate)
    if state_dict is not None:
        same = state_dict["param_group_mapping"] == parameter_group_collection.unique_name_mapping
        of_this = set(state_dict["param_group_optimizer_mapping"]) == {str(config.optimizer.optimizer)}
        if same and of_this:
            made.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
    return made


def create_lr_scheduler(config, optimizer):
    if config.learning_rate_scheduler is LearningRateScheduler.CUSTOM:
        module, _, name = config.custom_learning_rate_scheduler.rpartition(".")
        return getattr(importlib.import_module(module), name)(optimizer=optimizer, last_epoch=-1)
    constant = config.learning_rate_scheduler is LearningRateScheduler.CONSTANT
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 if constant else 0.1, config.steps)
