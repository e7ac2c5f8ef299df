"""What the trainer asks of a model family: a subclass in a file of its own, and an entry in `families.FAMILIES`."""

import importlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from modules.model.AddedWords import AddedWords, Vectors
from modules.model.ConditionedModel import ConditionedModel
from modules.model.families import FAMILIES, Family, facts_of
from modules.model.hub import Hub, Snapshot
from modules.model.KnownWeights import KnownWeights, files_digest, hash_weights
from modules.model.ModelComponents import ModelComponents
from modules.model.ModelSource import (
    Brought,
    ComponentFile,
    FolderSource,
    ModelSource,
    check_finite,
    check_folder,
    check_pipeline,
    names_folder,
    read_index,
    replaced_component,
)
from modules.model.native_file import check_family
from modules.model.tiled_decoding import tiled_decoding
from modules.model.weight_formats import component_dtype, is_quantized_format, place_component, quantized_layers
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.config.errors import Problem, Remedy
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.found_problems import raise_problems
from modules.util.release_memory import release_memory
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import DiffusionPipeline
from PIL import Image


class BaseModel(ConditionedModel):
    """A base model: its components, and how a training step, a sample and an adapter file are made of them.

    Nothing is loaded before it is needed: images and captions are encoded before the denoiser is there.

    Args:
        config: of the run.
        source: what components are loaded from.
        device: where they work.

    Attributes:
        components: by their names in the config, see `ModelComponents`.
        hub: where what is not on this machine comes from.
        text_encoder_trained: whether captions must be encoded anew at each step, with gradient.
        added_words: text encoder -> the words that it knows beside its vocabulary, for those of `embedding_keys`.
        known_weights: of earlier runs, see `weights_fingerprint`.
        in_parts: components that are loaded to the host's memory, as each process of the run takes a part of them.
    """

    model_types: ClassVar[tuple[ModelType, ...]] = ()
    # component -> class; tokenizers are no modules, and stand in `tokenizers`
    modules: ClassVar[Mapping[str, type[nn.Module]]] = {}
    # the same for each kind of model, where the models of a family differ in their classes; see `classes_of`
    variants: ClassVar[tuple[Mapping[str, type[nn.Module]], ...]] = ()
    # component -> name of the class in a folder's index, where only a part of that model is loaded
    index_names: ClassVar[Mapping[str, str]] = {}
    tokenizers: ClassVar[Mapping[str, type]] = {}
    # the same of what prepares pictures for a text encoder
    preparers: ClassVar[Mapping[str, type]] = {}
    # text encoder -> its tokenizer and what it is, of those that published folders lack
    brought: ClassVar[Mapping[str, Brought]] = {}
    # the config's components (`unet`, `text_encoder` …) that can be trained, the denoiser first
    trainable_components: ClassVar[tuple[str, ...]] = ()
    layer_filter_presets: ClassVar[Mapping[str, list[str]]] = {}
    sample_defaults: ClassVar[Mapping[str, object]] = {}
    # components that only images and samples need: they wait on `temp_device` while steps are taken
    resting: ClassVar[tuple[str, ...]] = ("vae",)
    # layouts of single files that it can be saved in, the usual one first; see `checkpoint_tensors`
    file_formats: ClassVar[tuple[ModelFormat, ...]] = ()
    # diffusers' class for a model that comes from such a file, where it is saved as a folder
    pipeline_class: ClassVar[type[DiffusionPipeline] | None] = None
    # module paths of a component's first and last layers, which optimizers of all weights step otherwise than the rest
    input_layers: ClassVar[tuple[str, ...]] = (
        "conv_in",
        "x_embedder",
        "context_embedder",
        "proj_in",
        "pos_embed.proj",
        # of the time, and of what is told beside it
        "time_embedding.linear_1",
        "add_embedding.linear_1",
        "time_guidance_embed.timestep_embedder.linear_1",
        "time_guidance_embed.guidance_embedder.linear_1",
    )
    output_layers: ClassVar[tuple[str, ...]] = ("conv_out", "proj_out", "lm_head")
    # text encoder -> name of its vectors in embedding files, for families in which words can be added
    embedding_keys: ClassVar[Mapping[str, str]] = {}
    # whether text encoders read long captions in `prompt_chunks`
    reads_chunks: ClassVar[bool] = False
    # whether the family says how `dynamic_timestep_shifting` follows from an image's size
    shifts_by_size: ClassVar[bool] = False
    # whether its layers take weights in one format of 16 bits and activations in the other, on a CPU, too
    mixes_half_formats: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        self.config, self.source, self.device, self.hub = config, source, device, Hub(config)
        self.components = ModelComponents(
            list(self.modules), self._load_component, device, torch.device(config.temp_device)
        )
        self.text_encoder_trained = False
        self.added_words: dict[str, AddedWords] = {}
        self.known_weights = KnownWeights(None)
        self.in_parts: Sequence[str] = ()
        self._fingerprints: dict[str, str] = {}
        self._loaded_from: dict[str, str | None] = {}
        self._empty: dict[str, nn.Module] = {}
        self._prompts: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def check_config(cls, config: TrainConfig) -> list[Problem]:
        """What the family has no use for or can't do, whichever of its models is trained. Nothing is opened."""
        found = []
        if config.prompt_chunks > 1 and not cls.reads_chunks:
            text = f"found {config.prompt_chunks}, but {config.model_type} does not read captions in chunks"
            found.append(Problem("prompt_chunks", text, (Remedy.of({"prompt_chunks": 1}),)))
        if config.dynamic_timestep_shifting and not cls.shifts_by_size:
            text = (
                f"{config.model_type} has no shift that depends on an image's size. Set it to false; `timestep_shift` "
                "is a fixed one"
            )
            found.append(Problem("dynamic_timestep_shifting", text, (Remedy.of({"dynamic_timestep_shifting": False}),)))
        return found

    @classmethod
    @abstractmethod
    def planned_naming(cls) -> AdapterNaming:
        """`adapter_naming` of a small model of the family: which formats there are, and what they hold as one."""

    @classmethod
    def load(cls, config: TrainConfig, device: torch.device, hub: Hub | None = None) -> Self:
        """A model from the folder, hub name or file that `config` names, none of its components loaded yet.

        Args:
            config: of the run.
            device: where components work.
            hub: of the run; None: one that reports nothing.

        Raises:
            UserError: there is no such model, or it is foreign or incomplete. What is broken in a component is told
                when it is loaded.
        """
        raise_problems(cls.check_config(config))
        hub = hub or Hub(config)
        place = hub.place(config.base_model_name, "base_model_name")
        if isinstance(place, Path) and place.is_file():
            source = cls.open_file(place, config)
        else:
            needed = cls.needed_folders(config)
            check_folder(place, [*needed, "scheduler"], cls.brought)
            check_pipeline(place, config)
            classes = {**cls.classes_of(place, config), **cls.tokenizers, **cls.preparers}
            source = FolderSource(place, {name: classes[name] for name in needed})
            source.fetch_settings()
            for component, own in cls.brought.items():
                found = replaced_component(config, component, cls.modules[component], hub)
                if isinstance(found, FolderSource):
                    source.others[own.tokenizer] = found.beside(own.tokenizer, cls.tokenizers[own.tokenizer])
        model = cls(config, source, device)
        model.hub = hub
        return model

    @classmethod
    def needed_folders(cls, config: TrainConfig) -> list[str]:
        """Components, tokenizers and preparers that a base model's folder must have: not what is brought from
        elsewhere."""
        elsewhere = [(name, own.tokenizer) for name, own in cls.brought.items() if names_folder(config, name)]
        there = {name for names in elsewhere for name in names}
        return [name for name in (*cls.modules, *cls.tokenizers, *cls.preparers) if name not in there]

    @classmethod
    def classes_of(cls, location: Path | Snapshot, config: TrainConfig) -> Mapping[str, type[nn.Module]]:
        """Component -> class of a folder: those of the one of `variants` that its index lists.

        Raises:
            UserError: it is none of them, or it has no readable index.
        """
        if not cls.variants:
            return cls.modules
        index = read_index(location)
        found = {name: (index.get(name) or [None])[-1] for name in cls.modules}
        for variant in cls.variants:
            if all(found[name] == kind.__name__ for name, kind in variant.items()):
                return variant
        known = " or ".join(", ".join(kind.__name__ for kind in variant.values()) for variant in cls.variants)
        raise UserError(
            f"base_model_name: {location} is no model for {config.model_type}: its model_index.json lists "
            f"{', '.join(map(str, found.values()))}; expected {known}."
        )

    @classmethod
    @abstractmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        """The components of a single file; UserError if the family has none, or the file is foreign or broken."""

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        """One component from the file that its `model_name` names; UserError if it can't be read."""
        raise UserError(f"{component}.model_name: {path} is a file, expected the folder of this component.")

    def _load_component(self, name: str) -> nn.Module:
        self._loaded_from[name] = self._files_digest(name, complete=True)
        module = self.stored_component(name, component_dtype(self.config, name))
        device = torch.device("cpu") if name in self.in_parts else self.device
        return place_component(module, name, self.config, device).requires_grad_(False).eval()

    def stored_component(self, name: str, dtype: torch.dtype) -> nn.Module:
        """A component as it was before this run, on the CPU; another one than that of `components`.

        Raises:
            UserError: it is missing or broken.
        """
        own = self.replacement(name)
        if isinstance(own, ComponentFile):
            path, family = own.path(self.hub), facts_of(self.config.model_type)
            if family and self.modules[name] is self.modules[family.components[0]]:
                check_family(path, family, name)
            module = self.read_component(path, name, dtype)
        else:
            module = (own or self.source).module(name, dtype)
        check_finite(name, module, (own or self.source).name)
        return module

    def replacement(self, component: str) -> FolderSource | ComponentFile | None:
        """Where the config says that a component comes from; None: the base model. UserError if it does not exist."""
        return replaced_component(self.config, component, self.modules[component], self.hub)

    def check_layers(self) -> None:
        """UserError if a component's layers are none for what the config wants of them. No weights need be there."""
        for component in self.modules:
            if is_quantized_format(self.config.component_weight_dtype(component)):
                quantized_layers(self.empty_component(component), component, self.config)

    def layers_of(self, component: str) -> nn.Module:
        """A component for its layers' names and sizes alone: on the meta device while it is not loaded."""
        loaded = self.components.loaded.get(component)
        return self.empty_component(component) if loaded is None else loaded

    def empty_component(self, component: str) -> nn.Module:
        """A component on the meta device, as it is before any of its layers is quantized; always the same one."""
        if component not in self._empty:
            own = self.replacement(component)
            self._empty[component] = (own if isinstance(own, FolderSource) else self.source).empty(component)
        return self._empty[component]

    def add_word(self, word: str, vectors: Mapping[str, Vectors]) -> None:
        """Lets a word in captions and prompts stand for vectors of its own in every text encoder of `embedding_keys`.

        Args:
            word: see `AddedWords`.
            vectors: text encoder -> a function that gives its vectors, `[tokens, width]`, at every use.
        """
        for component in self.embedding_keys:
            words = self.added_words[component]
            if not words:
                self.components.on_load(component, words.hook)
            words.add(word, vectors[component])

    @property
    def denoiser(self) -> nn.Module:
        return self.components[self.trainable_components[0]]

    def rest(self) -> None:
        """Puts away what training does not need: text encoders are freed, unless one is trained, the VAE and the like
        are parked.

        To be called when everything is encoded, and again after samples were drawn.
        """
        cached = self.config.latent_caching
        parked = [name for name in self.resting if (cached or name != "vae") and self.components.park(name)]
        encoders = [name for name in self.components.loaded if name.startswith("text_")]
        freed = encoders if cached and not self.text_encoder_trained else []
        for name in freed:
            self.components.free(name)
        if parked or freed:
            release_memory(self.device)

    @abstractmethod
    def text_limits(self) -> dict[str, int]:
        """Text encoder -> tokens of a caption that it reads. Those that every caption has are not counted."""

    @abstractmethod
    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        """How many tokens texts have for a text encoder, counted as in `text_limits`.

        Of each text, `cut_text` counts.
        """

    @abstractmethod
    def read_more(self, component: str, tokens: int) -> str:
        """What to set so that a text encoder reads more; "" if nothing helps.

        Args:
            component: the text encoder.
            tokens: that it should read.
        """

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Hash of everything that `encode_captions` depends on."""

    @abstractmethod
    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        """What the sampler needs of a sample's prompts, `[1, ...]` each.

        Of the sample, only its prompts and its options `text_encoder_…` count, unless `captions_see_conditioning`.
        """

    def prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        """`encode_prompts`, remembered unless a text encoder is trained, so that the encoders can be freed."""
        key = _key_of(sample)
        if self.text_encoder_trained or key not in self._prompts:
            with torch.no_grad():
                self.know_prompts(sample, self.encode_prompts(sample))
        return {name: tensor.to(self.device) for name, tensor in self._prompts[key].items()}

    def forget_prompts(self) -> None:
        """Prompts are encoded anew from now on, as text encoders have changed."""
        self._prompts.clear()

    def know_prompts(self, sample: SampleConfig, encoded: Mapping[str, Tensor]) -> None:
        """Remembers what `encode_prompts` gave for a sample."""
        self._prompts[_key_of(sample)] = {name: tensor.cpu() for name, tensor in encoded.items()}

    @abstractmethod
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        """Draws one image through the family's diffusers pipeline."""

    def tiled_decoding(self) -> AbstractContextManager[None]:
        """Meanwhile the VAE decodes large images in tiles; see `tiled_decoding`."""
        return tiled_decoding(self.components["vae"] if "vae" in self.components else None)

    def set_gradient_checkpointing(self, component: str, enabled: bool) -> None:
        """Trades time for memory in one component."""
        if not enabled:
            return
        module = self.components[component]
        # diffusers' name, and that of transformers
        enable = getattr(module, "enable_gradient_checkpointing", None) or module.activation_checkpointing_enable
        enable()
        # diffusers and transformers checkpoint only in training mode, in which T5 would drop what it was trained with
        module.train()
        without_dropout(module)

    @staticmethod
    @abstractmethod
    def name_layers(denoiser: nn.Module, text_encoders: Mapping[str, nn.Module]) -> AdapterNaming:
        """How adapter files call the layers of a model of the family.

        Args:
            denoiser: may be on the meta device.
            text_encoders: those that can be trained, by their names in the config.
        """

    def adapter_naming(self) -> AdapterNaming:
        """How adapter files call the layers of this model."""
        denoiser, *encoders = self.trainable_components
        return self.name_layers(
            self.layers_of(denoiser), {component: self.layers_of(component) for component in encoders}
        )

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """What a single file holds, and of which components' tensors it is made; those of one follow each other.

        Args:
            model_format: one of `file_formats`.

        Raises:
            ValueError: a component has tensors for which such files have no name.
        """
        raise NotImplementedError(f"{type(self).__name__} names {model_format} in file_formats, but not its tensors")

    def trained_scheduler_config(self) -> dict[str, Any]:
        """Options of the scheduler with which a model that was trained here is to be used."""
        return self.source.scheduler_config()

    @abstractmethod
    def file_description(self) -> dict[str, str]:
        """Fields of `AdapterDescription` that the family knows: architecture, base version, prediction type."""

    def weights_fingerprint(self, component: str) -> str:
        """sha256 of a component's weights as they are before training, and their format; loaded if it is not known."""
        if component not in self._fingerprints:
            is_loaded = component in self.components.loaded
            found = None if is_loaded else self.known_weights.find(self._files_digest(component))
            if found is None:
                found = f"{hash_weights(self.components[component])} {self.components[component].dtype}"
                # what was written while it was loaded may be another version
                if (source := self._loaded_from.get(component)) == self._files_digest(component):
                    self.known_weights.remember(source, found)
            self._fingerprints[component] = found
        return self._fingerprints[component]

    def _files_digest(self, component: str, complete: bool = False) -> str | None:
        """Names the files that a component is loaded from, and all settings on which its weights depend.

        Args:
            component: its name.
            complete: what is missing of it is fetched first.
        """
        if not self.known_weights:
            return None
        own = self.replacement(component) or self.source
        if complete and isinstance(own, FolderSource):
            own.fetch_weights(component)
        config = self.config
        settings = [
            component, self.modules[component], self.empty_component(component).config, self.device.type,
            config.component_weight_dtype(component), config.train_dtype, config.quantization.to_dict(),
        ]  # fmt: skip
        return files_digest([own.path(self.hub)] if isinstance(own, ComponentFile) else own.files(component), settings)


def without_dropout(module: nn.Module) -> None:
    """Switches off the dropout that a library's module brings: what is dropped here, the config says."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(vars(layer).get("dropout"), float):
            layer.dropout = 0.0


@cache
def model_families() -> dict[ModelType, type[BaseModel]]:
    """The class of every family, by the model types it serves."""
    return {kind: _class_of(family) for family in FAMILIES for kind in family.model_types}


def _class_of(family: Family) -> type[BaseModel]:
    return getattr(importlib.import_module(f"modules.model.{family.class_name}"), family.class_name)


def family_of(config: TrainConfig) -> type[BaseModel]:
    """The class that serves `config.model_type`."""
    families = model_families()
    if config.model_type not in families:
        raise UserError(
            f"model_type: {config.model_type} is not supported yet; expected one of {', '.join(sorted(families))}."
        )
    return families[config.model_type]


def _key_of(sample: SampleConfig) -> str:
    return json.dumps(sample.to_dict(), sort_keys=True)
