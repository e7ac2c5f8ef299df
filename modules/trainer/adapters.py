"""Which parts a run trains, and the adapters on them."""

from collections.abc import Callable, Sequence

from modules.model.BaseModel import BaseModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.LayerFilter import LayerFilter
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

from torch import Tensor


def trained_parts(config: TrainConfig, trainable: Sequence[str]) -> list[str]:
    """The parts of the family that the config trains; UserError if there are none."""
    parts = [part for part in trainable if getattr(config, part).train]
    if not parts:
        names = " or ".join(f"{part}.train" for part in trainable)
        raise UserError(f"Nothing is trained: switch on {names}.")
    return parts


def make_adapters(
    model: BaseModel, config: TrainConfig, parts: Sequence[str], warn: Callable[[str], None]
) -> dict[str, AdapterSet]:
    """Hooked adapters of each part, in training mode; with the weights of `lora_model_name` if it names a file.

    Args:
        model: loaded; its parts get gradient checkpointing as the config says.
        config: kind of adapter, layers, seed.
        parts: of the model.
        warn: gets remarks, one line each.
    """
    chosen = LayerFilter.from_config(config, model.layer_filter_presets)
    for note in chosen.notes:
        warn(note)
    start = read_start(config.lora_model_name, parts, model) if config.lora_model_name else {}
    sets: dict[str, AdapterSet] = {}
    for part in parts:
        # the filter names layers of the denoiser; text encoders are adapted whole, as OneTrainer does
        own = None if part.startswith("text_encoder") else chosen
        adapters = AdapterSet(part, model.components[part], config, own, config.seed, start.get(part))
        for note in adapters.notes:
            warn(note)
        adapters.to(model.device).train()
        adapters.hook()
        model.set_gradient_checkpointing(part, getattr(config, part).gradient_checkpointing)
        sets[part] = adapters
    model.text_encoder_trained = any(part.startswith("text_encoder") for part in parts)
    return sets


def read_start(path: str, parts: Sequence[str], model: BaseModel) -> dict[str, dict[str, dict[str, Tensor]]]:
    """The adapter of a file of any readable format: part -> layer -> part of the adapter -> tensor.

    Raises:
        UserError: the file is none, does not fit the model, or adapts a part that is not trained.
    """
    start = read_adapter(path).resolve(model.adapter_naming())
    for part in start:
        if part not in parts:
            raise UserError(f"lora_model_name: {path} adapts the {part}, which this run does not train. Train it, too.")
    return start
