"""Tells our optimizers what the parameters of a component trained as a whole are, and adds their curves."""

from types import ModuleType
from typing import Any

from scaled_onetrainer.describe import describe_component
from scaled_onetrainer.PluginOptimizer import PluginOptimizer
from scaled_onetrainer.run_hook import place

from torch import nn


def apply(module: ModuleType) -> None:
    """Components are described where groups are made of them; curves are written where OneTrainer writes its own."""
    setup = place(module, "BaseModelSetup")
    create, report = place(setup, "_create_model_part_parameters"), place(setup, "report_to_tensorboard")

    def _create_model_part_parameters(
        self: Any, parameter_group_collection: Any, unique_name: str, model: Any, *args: Any, **kwargs: Any
    ) -> None:
        # adapters describe themselves
        if isinstance(model, nn.Module):
            describe_component(model, unique_name)
        create(self, parameter_group_collection, unique_name, model, *args, **kwargs)

    def report_to_tensorboard(
        self: Any, model: Any, config: Any, scheduler: Any, tensorboard: Any, *args: Any, **kwargs: Any
    ) -> None:
        report(self, model, config, scheduler, tensorboard, *args, **kwargs)
        if isinstance(model.optimizer, PluginOptimizer):
            for name, value in model.optimizer.read_statistics().items():
                tensorboard.add_scalar(f"optimizer/{name}", value, model.train_progress.global_step)

    setup._create_model_part_parameters = _create_model_part_parameters
    setup.report_to_tensorboard = report_to_tensorboard
