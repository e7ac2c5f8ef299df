"""What the trainer asks of a model family. A family is one file with one subclass, found by its `model_types`."""

import hashlib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from PIL import Image

WEIGHT_DTYPES = {
    DataType.FLOAT_32: torch.float32,
    DataType.FLOAT_16: torch.float16,
    DataType.BFLOAT_16: torch.bfloat16,
}


@dataclass
class Prediction:
    """What the model said and what it should have said.

    Attributes:
        predicted: `[batch, channel, height, width]`.
        target: the same shape; noise, velocity or flow.
        timesteps: `[batch]`, integer steps of the family's schedule.
        snr: `[batch]` signal-to-noise ratio of the noised latents, for loss weights; None where it has no meaning.
        velocity: whether the target is a velocity, which changes the SNR weights.
    """

    predicted: Tensor
    target: Tensor
    timesteps: Tensor
    snr: Tensor | None = None
    velocity: bool = False


class BaseModel(ABC):
    """A base model: its components, and how a training step, a sample and an adapter file are made of them."""

    model_types: ClassVar[tuple[ModelType, ...]] = ()
    # config parts (`unet`, `text_encoder` …) that can be trained, the denoiser first
    trainable_parts: ClassVar[tuple[str, ...]] = ()
    layer_filter_presets: ClassVar[Mapping[str, list[str]]] = {}
    sample_defaults: ClassVar[Mapping[str, object]] = {}

    def __init__(self, config: TrainConfig, components: Mapping[str, nn.Module], device: torch.device) -> None:
        self.config = config
        self.components = dict(components)
        self.device = device
        self._fingerprints: dict[str, str] = {}

    @classmethod
    @abstractmethod
    def load(cls, config: TrainConfig, device: torch.device) -> "BaseModel":
        """Loads the components that `config` names; UserError if they are missing, foreign or broken."""

    @property
    @abstractmethod
    def image_grid(self) -> int:
        """Pixels; the sides of training images are multiples of it."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b, 3, h, w]` in [-1, 1] -> unscaled latents `[b, c, h', w']`, float32, without gradient."""

    @abstractmethod
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """The denoiser's conditions of each caption, float32; with gradient where a text encoder is trained."""

    @abstractmethod
    def image_fingerprint(self) -> str:
        """Hash of everything that `encode_images` depends on."""

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Hash of everything that `encode_captions` depends on."""

    @abstractmethod
    def predict(self, latents: Tensor, conditions: Mapping[str, Tensor], generator: torch.Generator) -> Prediction:
        """Draws noise and timesteps from `generator` (on the CPU, so that devices agree) and runs the denoiser."""

    @abstractmethod
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        """Draws one image through the family's diffusers pipeline."""

    @abstractmethod
    def set_gradient_checkpointing(self, part: str, enabled: bool) -> None:
        """Trades time for memory in one component."""

    @abstractmethod
    def adapter_naming(self) -> AdapterNaming:
        """How adapter files call the layers."""

    @abstractmethod
    def file_description(self) -> dict[str, str]:
        """Fields of `AdapterDescription` that the family knows: architecture, base version, prediction type."""

    def weights_hash(self, part: str) -> str:
        """sha256 of a component's weights, computed once."""
        if part not in self._fingerprints:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.components[part].state_dict().items()):
                data = tensor.detach().cpu().contiguous()
                digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
                digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
            self._fingerprints[part] = digest.hexdigest()
        return self._fingerprints[part]


def check_finite(part: str, module: nn.Module, source: str) -> None:
    """Raises UserError if a weight is missing, NaN or infinite: training would only spread it."""
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise UserError(f"The base model {source} is broken: it lacks {part}.{name}. Download it again.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"The base model {source} is broken: {part}.{name} holds NaN or infinite values. Download it again."
            )


def part_dtype(config: TrainConfig, part: str) -> torch.dtype:
    """The torch dtype of a component's frozen weights; UserError for formats that this family can't hold."""
    dtype = config.part_weight_dtype(part)
    if dtype not in WEIGHT_DTYPES:
        raise UserError(
            f"{part}.weight_dtype: found {dtype}, which is not supported yet; "
            f"expected one of {', '.join(str(key) for key in WEIGHT_DTYPES)}."
        )
    return WEIGHT_DTYPES[dtype]


def local_path(config: TrainConfig) -> Path | None:
    """The base model's path if it is on this machine, None if it is a name on a hub; UserError if neither."""
    name = config.base_model_name
    path = Path(name).expanduser()
    if path.exists():
        return path
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~", "models/")) and not path.suffix
    if not looks_like_hub or config.offline_mode:
        where = "is not on this machine and `offline_mode` is on" if looks_like_hub else "does not exist"
        raise UserError(
            f"base_model_name: {name} {where}. "
            "Expected a diffusers folder, a .safetensors or .ckpt file, or a name on the Hugging Face hub."
        )
    return None


@cache
def model_families() -> dict[ModelType, type[BaseModel]]:
    """Every family in this folder, by the model types it serves."""
    families: dict[ModelType, type[BaseModel]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        loaded = importlib.import_module(f"modules.model.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, BaseModel):
                families.update(dict.fromkeys(value.model_types, value))
    return families


def family_of(config: TrainConfig) -> type[BaseModel]:
    """The class that serves `config.model_type`."""
    families = model_families()
    if config.model_type not in families:
        raise UserError(
            f"model_type: {config.model_type} is not supported yet; expected one of {', '.join(sorted(families))}."
        )
    return families[config.model_type]
