"""Writing what a run of full fine-tuning has trained: the whole model, or its denoiser."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modules.model.BaseModel import BaseModel
from modules.model.model_index import is_component
from modules.model.ModelSource import FolderSource, library_class, read_index
from modules.modelSaver.output import Warn, config_comment, replace_output
from modules.modelSaver.save_model import (
    copy_folder,
    model_metadata,
    write_checkpoint,
    write_component,
    write_index,
)
from modules.util.config.errors import Remedy
from modules.util.config.load import pack
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import OUTPUT_DTYPES
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import nn

import diffusers
from transformers import PreTrainedModel

# what a file does not tell of its components, where it is not that of the standard model: of text encoders, schedulers
ENCODER_OPTIONS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "max_position_embeddings", "vocab_size",
)  # fmt: skip
SCHEDULE_OPTIONS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip


def model_file_format(model: BaseModel | type[BaseModel], config: TrainConfig) -> ModelFormat:
    """The layout in which the run writes its model, which follows from the family.

    Raises:
        UserError: the family can't be written in the config's format.
    """
    chosen, files = config.output_model_format, model.file_formats
    if chosen == ModelFormat.SAFETENSORS and files:
        return files[0]
    if chosen != ModelFormat.DIFFUSERS and chosen not in files:
        usual = [ModelFormat.SAFETENSORS] if files else []
        allowed = ", ".join([ModelFormat.DIFFUSERS, *usual, *files])
        raise UserError(
            f"output_model_format: {chosen} can't be written for a fully trained {config.model_type}; expected one of "
            f"{allowed}.",
            Remedy.of({"output_model_format": "SAFETENSORS" if files else "DIFFUSERS"}),
        )
    return chosen


def check_model_output(model: BaseModel, config: TrainConfig, components: Collection[str]) -> None:
    """To be asked before a run: can the model be written as the config says?

    Args:
        model: none of its weights need be there.
        config: format and dtype.
        components: that are trained.

    Raises:
        UserError: a format or dtype that can't be written, or a format that would lose a trained component.
    """
    if config.output_dtype not in OUTPUT_DTYPES:
        raise UserError(
            f"output_dtype: {config.output_dtype} cannot be written for models; expected one of "
            f"{', '.join(OUTPUT_DTYPES)}."
        )
    model_format = model_file_format(model, config)
    if model_format == ModelFormat.DIFFUSERS:
        return
    try:
        held = {component for tensor in model.checkpoint_tensors(model_format) for component, _ in tensor.sources}
    except (ValueError, KeyError) as error:
        raise UserError(
            f"output_model_format: this model has tensors that {model_format} has no names for ({error}). "
            "Choose DIFFUSERS."
        ) from error
    if lost := [component for component in components if component not in held]:
        raise UserError(
            f"output_model_format: {model_format} holds no {lost[0]}, which is trained. Choose DIFFUSERS, or set "
            f"{lost[0]}.train to false."
        )


def save_weights(path: Path, components: Collection[str], model: BaseModel, config: TrainConfig, warn: Warn) -> None:
    """Writes the model in the configured format. An older one there is set aside.

    Args:
        path: a folder for DIFFUSERS, else a file.
        components: that were trained; everything else is written as it was before the run, in `output_dtype`.
        model: with the trained weights.
        config: format and dtype.
        warn: is told where an older model went.
    """
    writer = ModelWriter(model, config, components)
    # a run in half precision saves while its autocast is on, in which sums would lose their digits
    with torch.autocast(model.device.type, enabled=False):
        if model_file_format(model, config) == ModelFormat.DIFFUSERS:
            replace_output(path, writer.write_folder, warn)
        else:
            replace_output(path, writer.write_file, warn, companion=config_folder)


def config_folder(path: Path) -> Path:
    """The folder beside a single file that describes an architecture or tokenizer other than the standard one."""
    return path.with_name(f"{path.stem}.config")


class ModelWriter:
    """Writes a model whose trained components are those of `model` and whose others are those of its source.

    Args:
        model: with the trained weights.
        config: format, dtype and what is told of the run.
        components: that were trained.
    """

    def __init__(self, model: BaseModel, config: TrainConfig, components: Collection[str]) -> None:
        self.model, self.config, self.components = model, config, components
        self.dtype = OUTPUT_DTYPES[config.output_dtype]

    def component(self, name: str) -> nn.Module:
        """A component as it shall be written."""
        if name in self.components:
            return self.model.components[name]
        # what is in memory may have been rounded; and the device has no room to spare
        return self.model.stored_component(name, self.dtype or next(self.model.denoiser.parameters()).dtype)

    def write_folder(self, target: Path) -> None:
        """The model in diffusers' layout: the base's folder with other weights, or a new one where it has none."""
        base = Path(self.config.base_model_name).expanduser()
        elsewhere = [component for component in self.model.modules if self.model.replacement(component)]
        if base.is_dir():
            copy_folder(base, target, self.components, leave_out=elsewhere)
            components = [
                component for component in self.model.modules if component in self.components or component in elsewhere
            ]
        else:
            target.mkdir()
            components = list(self.model.modules)
            write_index(target, self._index())
            for name in self.model.tokenizers:
                self.model.source.tokenizer(name).save_pretrained(target / name)
            for name in self.model.preparers:
                # whole: they hold more than is read here
                (target / name).mkdir()
                for file in self.model.source.files(name):
                    shutil.copyfile(file, target / name / file.name)
        self._write_brought(target)
        scheduler = self.model.trained_scheduler_config()
        if not base.is_dir() or scheduler != self.model.source.scheduler_config():
            self._write_scheduler(target, scheduler)
        for name in components:
            write_component(target / name, self.component(name), self.dtype)
        self._name_parts(target, components)
        if comment := config_comment(self.config):
            (target / "train_config.json").write_text(comment, encoding="utf-8")

    def _write_brought(self, target: Path) -> None:
        """Tokenizers that came with their text encoders from elsewhere."""
        others = self.model.source.others if isinstance(self.model.source, FolderSource) else {}
        for name in others:
            tokenizer = self.model.source.tokenizer(name)
            tokenizer.save_pretrained(target / name)
            write_index(target, {**read_index(target), name: ["transformers", type(tokenizer).__name__]})

    def _name_parts(self, target: Path, written: Collection[str]) -> None:
        """Names the classes of those parts of models that were written in place of the whole ones."""
        parts = {
            name: ["transformers", library_class(self.model.modules[name]).__name__]
            for name in written
            if name in self.model.index_names
        }
        if parts:
            write_index(target, {**read_index(target), **parts})

    def write_file(self, target: Path) -> None:
        """A single file, and a folder beside it if the file alone would be read as another model."""
        model_format = model_file_format(self.model, self.config)
        description = self.model.file_description()
        metadata = model_metadata(
            Path(self.config.output_model_destination).stem, description.get("architecture", ""),
            description.get("prediction_type", ""), pack(self.config).config_hash(), config_comment(self.config),
        )  # fmt: skip
        tensors = self.model.checkpoint_tensors(model_format)
        write_checkpoint(target, tensors, lambda name: self.component(name).state_dict(), self.dtype, metadata)
        if model_format == ModelFormat.ORIGINAL_SINGLE_FILE and not self._is_read_alike(target):
            self._describe(config_folder(target))

    def _index(self) -> dict[str, Any]:
        if isinstance(self.model.source, FolderSource):
            index = self.model.source.index()
            there = (*self.model.modules, *self.model.tokenizers, *self.model.preparers, "scheduler")
            # what else a pipeline may have, such as a safety checker, was never loaded
            return {
                name: [None, None] if is_component(value) and name not in there else value
                for name, value in index.items()
            }
        assert self.model.pipeline_class is not None, f"{type(self.model).__name__} has no pipeline_class"
        libraries = {
            name: "transformers" if issubclass(kind, PreTrainedModel) else "diffusers"
            for name, kind in self.model.modules.items()
        }
        index = {name: [library, self.model.modules[name].__name__] for name, library in libraries.items()}
        index |= {
            name: ["transformers", type(self.model.source.tokenizer(name)).__name__] for name in self.model.tokenizers
        }
        index["scheduler"] = ["diffusers", self.model.source.scheduler_config()["_class_name"]]
        absent = [name for name in self.model.pipeline_class._optional_components if name not in index]
        return {
            "_class_name": self.model.pipeline_class.__name__,
            "_diffusers_version": diffusers.__version__,
            **dict(sorted(index.items())),
            **dict.fromkeys(absent, [None, None]),
        }

    def _write_scheduler(self, target: Path, options: Mapping[str, Any]) -> None:
        kind = getattr(diffusers, options["_class_name"])
        kind.from_config(dict(options)).save_pretrained(target / "scheduler")

    def _is_read_alike(self, path: Path) -> bool:
        """Whether the family makes the same model of the file alone."""
        own = {
            component: getattr(self.config, component).model_copy(update={"model_name": ""})
            for component in self.model.modules
        }
        try:
            source = type(self.model).open_file(path, self.config.model_copy(update=own))
        except UserError:
            return False
        alike = all(
            _options(source.empty(component)) == _options(self.model.empty_component(component))
            for component in self.model.modules
        )
        schedules = [
            {name: options.get(name) for name in SCHEDULE_OPTIONS}
            for options in (source.scheduler_config(), self.model.trained_scheduler_config())
        ]
        words = all(
            source.tokenizer(name).get_vocab() == self.model.source.tokenizer(name).get_vocab()
            for name in self.model.tokenizers
        )
        return alike and schedules[0] == schedules[1] and words

    def _describe(self, folder: Path) -> None:
        for component in self.model.modules:
            empty = self.model.empty_component(component)
            if isinstance(empty, PreTrainedModel):
                empty.config.save_pretrained(folder / component)
            else:
                empty.save_config(folder / component)
        for name in self.model.tokenizers:
            self.model.source.tokenizer(name).save_pretrained(folder / name)
        self._write_scheduler(folder, self.model.trained_scheduler_config())


def _options(module: nn.Module) -> dict[str, Any]:
    """What makes a component what it is, comparable."""
    if isinstance(module, PreTrainedModel):
        return {name: getattr(module.config, name, None) for name in ENCODER_OPTIONS}
    # the size of images that it was made for changes nothing
    options = {name: value for name, value in module.config.items() if not name.startswith("_")}
    return json.loads(json.dumps({**options, "sample_size": None}, default=list))
