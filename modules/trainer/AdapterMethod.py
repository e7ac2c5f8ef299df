from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.modelSaver.adapter_output import adapter_format, check_adapter_output, save_adapters
from modules.modelSaver.save_adapter import check_halves
from modules.module.AdapterSet import AdapterSet
from modules.trainer.adapters import check_layers, make_adapters
from modules.trainer.Method import Method, Warn, check_trained, trained_components, trains_text_encoder
from modules.trainer.optimizer_checks import check_lora_options
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.errors import Problem
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.found_problems import found


class AdapterMethod(Method):
    """Adapters of any kind on frozen layers, written as one file."""

    training_method = TrainingMethod.LORA
    keeps_model = True

    def check(self, config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
        return [
            *found(check_trained, config, family.trainable_components),
            *found(check_lora_options, config, warn),
            # what is to be said of formats is said once the model itself is known
            *found(check_adapter_output, config, family.planned_naming(), lambda _: None, path="lora_model_name"),
        ]

    def check_output(self, model: BaseModel, config: TrainConfig, warn: Warn) -> None:
        check_layers(model, config, trained_components(config, model.trainable_components))
        check_adapter_output(config, model.adapter_naming(), warn)

    def trains_text(self, config: TrainConfig, trainable: Sequence[str]) -> bool:
        return trains_text_encoder(config, trainable)

    def make(self, model: BaseModel, config: TrainConfig, warn: Warn) -> dict[str, TrainedSet]:
        sets = make_adapters(model, config, trained_components(config, model.trainable_components), warn)
        check_halves(adapter_format(config), model.adapter_naming(), sets)
        return dict(sets)

    def save(
        self, path: Path, sets: Mapping[str, TrainedSet], model: BaseModel, config: TrainConfig, warn: Warn
    ) -> None:
        own = {name: adapters for name, adapters in sets.items() if isinstance(adapters, AdapterSet)}
        save_adapters(path, own, model, config, warn)
