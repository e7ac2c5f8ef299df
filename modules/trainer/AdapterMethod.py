from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.module.AdapterSet import AdapterSet
from modules.trainer.adapter_output import check_adapter_output, save_adapters
from modules.trainer.adapters import make_adapters
from modules.trainer.Method import Method, Warn, check_trained, trained_parts, trains_text_encoder
from modules.trainer.optimizers import check_lora_options
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.TrainingMethod import TrainingMethod


class AdapterMethod(Method):
    """Adapters of any kind on frozen layers, written as one file."""

    training_method = TrainingMethod.LORA

    def check(self, config: TrainConfig, trainable: Sequence[str], warn: Warn) -> None:
        check_trained(config, trainable)
        check_lora_options(config, warn)

    def check_output(self, model: BaseModel, config: TrainConfig, warn: Warn) -> None:
        check_adapter_output(config, model.adapter_naming(), warn)

    def trains_text(self, config: TrainConfig, trainable: Sequence[str]) -> bool:
        return trains_text_encoder(config, trainable)

    def make(self, model: BaseModel, config: TrainConfig, warn: Warn) -> dict[str, TrainedSet]:
        return dict(make_adapters(model, config, trained_parts(config, model.trainable_parts), warn))

    def save(
        self, path: Path, sets: Mapping[str, TrainedSet], model: BaseModel, config: TrainConfig, warn: Warn
    ) -> None:
        own = {name: adapters for name, adapters in sets.items() if isinstance(adapters, AdapterSet)}
        save_adapters(path, own, model, config, warn)
