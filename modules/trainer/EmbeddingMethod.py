"""Textual inversion: embeddings as what a run trains, and beside another method."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.model.AddedWords import word_pattern
from modules.model.BaseModel import BaseModel
from modules.modelSaver.embedding_file import write_embedding
from modules.modelSaver.output import config_comment, replace_output
from modules.trainer.EmbeddingSet import EmbeddingSet, token_count
from modules.trainer.Method import Method, SetOptions, Warn
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.dtypes import FLOAT_DTYPES, OUTPUT_DTYPES
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.found_problems import found
from modules.util.UserError import UserError

import torch


@dataclass(frozen=True)
class EmbeddingOptions:
    """See `SetOptions`."""

    learning_rate: float | None
    stop_training_after: int | None
    stop_training_after_unit: TimeUnit


class AdditionalEmbeddings(Method):
    """Embeddings that are trained, or only used, beside another method; each is written into a file of its own."""

    keeps_model = True

    def applies(self, config: TrainConfig) -> bool:
        return bool(config.additional_embeddings)

    def embeddings(self, config: TrainConfig) -> dict[str, TrainEmbeddingConfig]:
        """Name of the set -> options. A set's name ends before the first dot, as names of its tensors begin with it."""
        return {
            f"embedding {(own.uuid or own.placeholder).replace('.', '_')}": own for own in config.additional_embeddings
        }

    def check(self, config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
        return [
            *found(self.check_family, config, family, path="additional_embeddings"),
            *found(self.check_words, config, path="additional_embeddings"),
            *found(self._check_method, config, warn),
        ]

    def planned_sets(self, config: TrainConfig, family: type[BaseModel]) -> list[str]:
        return [name for name, own in self.embeddings(config).items() if own.train]

    def check_family(self, config: TrainConfig, family: BaseModel | type[BaseModel]) -> None:
        """Raises UserError if no word can be added to the models of a family."""
        if not family.embedding_keys:
            raise UserError(f"Embeddings: {config.model_type} has no text encoder to which words can be added.")

    def _check_method(self, config: TrainConfig, warn: Warn) -> None:
        if config.bundle_additional_embeddings and config.training_method == TrainingMethod.LORA:
            warn(
                "bundle_additional_embeddings has no effect yet: additional embeddings are written into files of their "
                "own beside the output."
            )
        elif config.training_method == TrainingMethod.FINE_TUNE_VAE:
            raise UserError(
                "additional_embeddings: no caption is read when the VAE is trained. Remove them.",
                Remedy.of({"additional_embeddings": []}),
            )

    def check_words(self, config: TrainConfig) -> None:
        """Raises UserError if its embeddings' words or number formats can't be."""
        own = self.embeddings(config)
        every = list(config.additional_embeddings)
        if config.training_method == TrainingMethod.EMBEDDING:
            every.append(config.embedding)
        words = [embedding.placeholder.strip().lower() for embedding in every]
        if not all(words) or len(set(words)) < len(words) or len(own) < len(self._listed(config)):
            raise UserError(
                f"embedding placeholders: found {', '.join(map(repr, words))}; expected a word for each, all different."
            )
        for embedding in own.values():
            if embedding.is_output_embedding:
                raise UserError(f"embedding {embedding.placeholder}: is_output_embedding is not supported yet.")
        if config.embedding_weight_dtype not in FLOAT_DTYPES:
            allowed = ", ".join(FLOAT_DTYPES)
            raise UserError(
                f"embedding_weight_dtype: found {config.embedding_weight_dtype}, expected one of {allowed}."
            )
        if config.output_dtype not in OUTPUT_DTYPES:
            allowed = ", ".join(OUTPUT_DTYPES)
            raise UserError(
                f"output_dtype: {config.output_dtype} cannot be written for embeddings; expected {allowed}."
            )

    def _listed(self, config: TrainConfig) -> Sequence[TrainEmbeddingConfig]:
        return config.additional_embeddings

    def check_output(self, model: BaseModel, config: TrainConfig, warn: Warn) -> None:
        self.check_family(config, model)

    def trains_text(self, config: TrainConfig, trainable: Sequence[str]) -> bool:
        return any(own.train for own in self.embeddings(config).values())

    def add_placeholders(self, model: BaseModel, config: TrainConfig) -> None:
        self.check_family(config, model)
        self.check_words(config)
        for own in self.embeddings(config).values():
            places = torch.zeros(token_count(model, own), 1)
            model.add_word(
                own.placeholder, {component: lambda places=places: places for component in model.embedding_keys}
            )

    def prepare(self, model: BaseModel, config: TrainConfig, captions: Sequence[str], warn: Warn) -> None:
        for name, own in self.embeddings(config).items():
            if not own.train:
                self._make_one(name, model, config, own, warn).requires_grad_(False)
            elif not any(map(word_pattern([own.placeholder]).search, captions)):
                raise UserError(
                    f"embedding {own.placeholder}: no caption has this word, so nothing would be trained. Write it "
                    "into the captions of what it stands for, or choose a placeholder that is there."
                )

    def make(self, model: BaseModel, config: TrainConfig, warn: Warn) -> dict[str, TrainedSet]:
        trained = {name: own for name, own in self.embeddings(config).items() if own.train}
        if trained:
            # gradients go through the denoiser to the text encoders, whoever else trains them
            for component in (model.trainable_components[0], *model.embedding_keys):
                model.set_gradient_checkpointing(component, getattr(config, component).gradient_checkpointing)
        return {name: self._make_one(name, model, config, own, warn) for name, own in trained.items()}

    def _make_one(
        self, name: str, model: BaseModel, config: TrainConfig, own: TrainEmbeddingConfig, warn: Warn
    ) -> EmbeddingSet:
        embedding = EmbeddingSet(name, model, config, own)
        for note in embedding.notes:
            warn(note)
        return embedding

    def options(self, config: TrainConfig, name: str) -> SetOptions | None:
        own = self.embeddings(config).get(name)
        if own is None:
            return None
        return EmbeddingOptions(config.embedding_learning_rate, own.stop_training_after, own.stop_training_after_unit)

    def file_of(self, path: Path, own: EmbeddingSet, config: TrainConfig) -> Path:
        """Where an embedding is written beside the output, or beside a save on the way."""
        words = re.sub(r"[^\w\- ]", "", own.placeholder).strip() or own.name.replace("<", "").replace(">", "")
        # saves on the way stand in one folder
        is_output = path == Path(config.output_model_destination)
        return path.with_name(f"{words}.safetensors" if is_output else f"{path.stem}-{words}.safetensors")

    def save(
        self, path: Path, sets: Mapping[str, TrainedSet], model: BaseModel, config: TrainConfig, warn: Warn
    ) -> None:
        for name in self.embeddings(config):
            own = sets.get(name)
            if isinstance(own, EmbeddingSet):
                _write(self.file_of(path, own, config), own, model, config, warn)


class EmbeddingMethod(AdditionalEmbeddings):
    """One embedding, and nothing else; written as one file."""

    training_method = TrainingMethod.EMBEDDING
    # images without its word can't change, and with it they would be held where the word began
    keeps_model = False

    def applies(self, config: TrainConfig) -> bool:
        return config.training_method == self.training_method

    def embeddings(self, config: TrainConfig) -> dict[str, TrainEmbeddingConfig]:
        return {"embedding": config.embedding}

    def _listed(self, config: TrainConfig) -> Sequence[TrainEmbeddingConfig]:
        return [config.embedding]

    def check(self, config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
        return [
            *found(self.check_family, config, family, path="training_method"),
            *found(self.check_words, config, path="embedding"),
            *found(_check_trained, config),
            *found(_check_file_format, config),
        ]

    def file_of(self, path: Path, own: EmbeddingSet, config: TrainConfig) -> Path:
        return path


def _check_trained(config: TrainConfig) -> None:
    if not config.embedding.train:
        raise UserError(
            "embedding.train: is false, but the method EMBEDDING trains nothing else. Set it to true.",
            Remedy.of({"embedding.train": True}),
        )


def _check_file_format(config: TrainConfig) -> None:
    if config.output_model_format != ModelFormat.SAFETENSORS:
        raise UserError(
            f"output_model_format: {config.output_model_format} has no embeddings; expected SAFETENSORS.",
            Remedy.of({"output_model_format": "SAFETENSORS"}),
        )


def _write(path: Path, own: EmbeddingSet, model: BaseModel, config: TrainConfig, warn: Warn) -> None:
    dtype = OUTPUT_DTYPES[config.output_dtype]
    vectors = {key: tensor.to(dtype or tensor.dtype) for key, tensor in own.tensors().items()}
    architecture = model.file_description().get("architecture", "")
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/textual-inversion" if architecture else "",
        "modelspec.title": path.stem,
        "modelspec.trigger_phrase": own.placeholder,
        "modelspec.description": config_comment(config),
    }
    filled = {key: text for key, text in metadata.items() if text}
    replace_output(path, lambda fresh: write_embedding(fresh, vectors, filled), warn)
