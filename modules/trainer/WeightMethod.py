from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.modelSaver.merged_model import overlap
from modules.modelSaver.weight_output import check_model_output, model_file_format, save_weights
from modules.module.WeightSet import WeightSet, weight_layers
from modules.trainer.Method import Method, Warn, check_trained, trained_components, trains_text_encoder
from modules.trainer.optimizers import OPTIMIZERS
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.found_problems import found
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError

TRAINABLE_FORMATS = (DataType.FLOAT_32, DataType.BFLOAT_16)
FILE_ENDING = ".safetensors"


class WeightMethod(Method):
    """Full fine-tuning: the weights themselves of any component, written as a whole model."""

    training_method = TrainingMethod.FINE_TUNE

    def check(self, config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
        components = trained_components(config, family.trainable_components)
        return [
            *found(check_trained, config, family.trainable_components),
            *(problem for component in components for problem in found(_check_format, config, component)),
            *found(_check_optimizer, config, components, warn),
            *found(_check_no_adapter, config),
            *found(model_file_format, family, config),
            *found(_check_place, config, self.writes_folder(config)),
        ]

    def check_output(self, model: BaseModel, config: TrainConfig, warn: Warn) -> None:
        chosen = LayerFilter.from_config(config, model.layer_filter_presets)
        components = trained_components(config, model.trainable_components)
        for component in components:
            if not component.startswith("text_encoder"):
                chosen.select(weight_layers(model.layers_of(component)), component)
        check_model_output(model, config, components)

    def writes_folder(self, config: TrainConfig) -> bool:
        return config.output_model_format == ModelFormat.DIFFUSERS

    def trains_text(self, config: TrainConfig, trainable: Sequence[str]) -> bool:
        return trains_text_encoder(config, trainable)

    def make(self, model: BaseModel, config: TrainConfig, warn: Warn) -> dict[str, TrainedSet]:
        chosen = LayerFilter.from_config(config, model.layer_filter_presets)
        for note in chosen.notes:
            warn(note)
        sets: dict[str, TrainedSet] = {}
        for component in trained_components(config, model.trainable_components):
            # the filter names layers of the denoiser; text encoders are trained whole
            own = None if component.startswith("text_encoder") else chosen
            sets[component] = WeightSet(
                component, model.components[component], own, model.input_layers, model.output_layers
            )
            sets[component].requires_grad_()
            model.set_gradient_checkpointing(component, getattr(config, component).gradient_checkpointing)
        return sets

    def save(
        self, path: Path, sets: Mapping[str, TrainedSet], model: BaseModel, config: TrainConfig, warn: Warn
    ) -> None:
        components = [name for name, own in sets.items() if isinstance(own, WeightSet)]
        save_weights(path, components, model, config, warn)


def _check_no_adapter(config: TrainConfig) -> None:
    if config.lora_model_name:
        raise UserError(
            f"lora_model_name: {config.lora_model_name} is an adapter, which FINE_TUNE does not train. Merge it "
            "into the base model first with scripts/convert_adapter.py, or clear this option.",
            Remedy.of({"lora_model_name": ""}),
        )


def _check_format(config: TrainConfig, component: str) -> None:
    chosen = config.component_weight_dtype(component)
    if chosen in TRAINABLE_FORMATS:
        return
    if chosen == DataType.FLOAT_16:
        why = "half precision has no room for the small steps of training"
    else:
        why = "quantized weights can only stay frozen, below an adapter (training_method LORA)"
    raise UserError(
        f"{component}.weight_dtype: found {chosen}, but FINE_TUNE trains the weights themselves, and {why}. Set it to "
        "FLOAT_32, or to BFLOAT_16, which takes half the memory, with an optimizer that rounds stochastically.",
        Remedy.of({f"{component}.weight_dtype": "FLOAT_32"}),
        Remedy.of({f"{component}.weight_dtype": "BFLOAT_16"}),
    )


def _check_optimizer(config: TrainConfig, components: Sequence[str], warn: Warn) -> None:
    own, entry = config.optimizer, OPTIMIZERS[config.optimizer.optimizer]
    able, chosen = "stochastic_rounding" in entry.defaults, own.stochastic_rounding
    rounds = able and (entry.defaults["stochastic_rounding"] if chosen is None else chosen)
    short = [component for component in components if config.component_weight_dtype(component) == DataType.BFLOAT_16]
    if short and not rounds:
        advice = "Set optimizer.stochastic_rounding to true" if able else "Choose an optimizer such as ADAMW_ADV"
        warn(
            f"{short[0]}.weight_dtype: BFLOAT_16 has 8 bits, so steps below 1/256 of a weight are lost where they are "
            f"rounded to the nearest. {advice}, or set it to FLOAT_32."
        )


def _check_place(config: TrainConfig, folder: bool) -> None:
    """UserError if the output's name does not fit its format, or its place is that of the base model."""
    path, base = Path(config.output_model_destination), Path(config.base_model_name).expanduser()
    is_file_name = path.suffix.lower() == FILE_ENDING
    if folder and is_file_name:
        raise UserError(
            f"output_model_destination: {path} is a file's name, but DIFFUSERS writes a folder. Leave {FILE_ENDING} "
            "out, or set output_model_format to SAFETENSORS.",
            Remedy.of({"output_model_destination": str(path.with_suffix(""))}),
            Remedy.of({"output_model_format": "SAFETENSORS"}),
        )
    if not folder and not is_file_name:
        raise UserError(
            f"output_model_destination: expected a name that ends in {FILE_ENDING}, found {path}. For a folder set "
            "output_model_format to DIFFUSERS.",
            Remedy.of({"output_model_destination": f"{path}{FILE_ENDING}"}),
            Remedy.of({"output_model_format": "DIFFUSERS"}),
        )
    if overlap(path.resolve(), base.resolve()):
        raise UserError(
            f"output_model_destination: {path} is, holds or lies in the base model {base}, which is read until the "
            "end. Choose another place."
        )
