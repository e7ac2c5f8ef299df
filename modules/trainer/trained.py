"""The ways to train, and what a run trains by those that its config names."""

from collections.abc import Mapping
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.trainer.AdapterMethod import AdapterMethod
from modules.trainer.EmbeddingMethod import AdditionalEmbeddings, EmbeddingMethod
from modules.trainer.Method import Method, SetOptions, Warn
from modules.trainer.TrainedSet import TrainedSet
from modules.trainer.WeightMethod import WeightMethod
from modules.util.config.TrainConfig import TrainConfig
from modules.util.ParameterInfo import set_model_width
from modules.util.UserError import UserError
from scaled_optim.description import model_width

# a new way to train is one line here
METHODS: tuple[Method, ...] = (AdapterMethod(), WeightMethod(), EmbeddingMethod(), AdditionalEmbeddings())


def methods_of(config: TrainConfig) -> list[Method]:
    """The ways in which a run trains: that of `training_method`, and those that run beside it.

    Raises:
        UserError: there is none for `training_method`.
    """
    known = [method.training_method for method in METHODS if method.training_method is not None]
    if config.training_method not in known:
        raise UserError(
            f"training_method: {config.training_method} is not supported yet; expected one of {', '.join(known)}."
        )
    return [method for method in METHODS if method.applies(config)]


def make_trained(model: BaseModel, config: TrainConfig, warn: Warn) -> dict[str, TrainedSet]:
    """Everything that a run trains, in training mode, by name: that of the component where there is one, as `unet`.

    Args:
        model: its trained components are loaded and prepared for training.
        config: of the run.
        warn: gets remarks, one line each.
    """
    sets: dict[str, TrainedSet] = {}
    for method in methods_of(config):
        made = method.make(model, config, warn)
        assert not made.keys() & sets.keys(), f"{made.keys()} and {sets.keys()} share a name"
        sets |= made
    for name, own in sets.items():
        if name in model.components:
            set_model_width(own.parameters(), model_width(model.components[name]))
    return sets


def options_of(config: TrainConfig, name: str) -> SetOptions:
    """The options of a trained set: its learning rate, and when its training stops."""
    return next(own for method in methods_of(config) if (own := method.options(config, name)) is not None)


def save_trained(path: Path, sets: Mapping[str, TrainedSet], model: BaseModel, config: TrainConfig, warn: Warn) -> Path:
    """Writes what was trained, in the configured format, and returns its path. What is there is set aside."""
    for method in methods_of(config):
        method.save(path, sets, model, config, warn)
    return path
