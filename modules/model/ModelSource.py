"""Where the components of a base model come from: a folder in diffusers' layout, a hub name, or files of a family."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import nn

import diffusers
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)


class ModelSource(Protocol):
    """What a family loads its components from.

    Attributes:
        name: for messages.
    """

    name: str

    def module(self, part: str, dtype: torch.dtype) -> nn.Module:
        """A component with its weights, on the CPU. Raises UserError if it is missing or broken."""

    def empty(self, part: str) -> nn.Module:
        """The same component on the meta device: its layers without their weights."""

    def tokenizer(self, part: str) -> PreTrainedTokenizerBase:
        """A tokenizer by its component's name. Raises UserError if it is missing or broken."""

    def scheduler_config(self) -> dict[str, Any]:
        """All options of the model's scheduler. Raises UserError if they are missing or broken."""


class FolderSource:
    """A folder in diffusers' layout, or a name on the hub.

    Args:
        location: a folder on this machine, or the hub's name of a model.
        config: read for `offline_mode` and `huggingface_cache_dir`.
        classes: component -> class, tokenizers included.
        root: whether components are subfolders; otherwise `location` is itself the one component of `classes`.
    """

    def __init__(self, location: str | Path, config: TrainConfig, classes: Mapping[str, type], root: bool = True):
        self.name, self.classes, self.root = str(location), classes, root
        self._options = {
            "local_files_only": Path(location).is_dir() or config.offline_mode,
            "cache_dir": config.huggingface_cache_dir or None,
        }

    def module(self, part: str, dtype: torch.dtype) -> nn.Module:
        kind = self.classes[part]
        # the two libraries name the argument differently
        name = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
        with load_errors(self.name):
            module, found = kind.from_pretrained(
                self.name, **self._place(part), **self._options, **{name: dtype}, output_loading_info=True
            )
        # the libraries make missing weights up and tell of it only here
        if missing := sorted(found["missing_keys"]):
            raise UserError(f"The base model {self.name} is broken: it lacks {part}.{missing[0]}. Download it again.")
        return module

    def empty(self, part: str) -> nn.Module:
        kind = self.classes[part]
        with load_errors(self.name):
            if issubclass(kind, PreTrainedModel):
                config = kind.config_class.from_pretrained(self.name, **self._place(part), **self._options)
            else:
                config = kind.load_config(self.name, **self._place(part), **self._options)
            return empty_module(kind, config)

    def tokenizer(self, part: str) -> PreTrainedTokenizerBase:
        with load_errors(self.name):
            return self.classes[part].from_pretrained(self.name, **self._place(part), **self._options)

    def scheduler_config(self) -> dict[str, Any]:
        with load_errors(self.name):
            config = diffusers.DDPMScheduler.load_config(self.name, **self._place("scheduler"), **self._options)
            return dict(getattr(diffusers, config["_class_name"]).from_config(config).config)

    def _place(self, part: str) -> dict[str, str]:
        return {"subfolder": part} if self.root else {}


def empty_module(kind: type[nn.Module], config: Any) -> nn.Module:
    """A module of diffusers or transformers on the meta device, frozen.

    Args:
        kind: its class.
        config: a mapping of options for diffusers, a config object for transformers.
    """
    with torch.device("meta"):
        module = kind(config) if issubclass(kind, PreTrainedModel) else kind.from_config(config)
    return module.requires_grad_(False)


@contextmanager
def load_errors(source: str) -> Iterator[None]:
    """Says in one line that a base model can't be loaded, and why."""
    try:
        yield
    except UserError:
        raise
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The base model {source} can't be loaded: {reason}") from error


def check_folder(path: Path, parts: Sequence[str]) -> None:
    """UserError if a folder is not a model in diffusers' layout with all of these parts."""
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"base_model_name: {path} has no model_index.json. Expected a diffusers folder; "
            "for a single file, name the .safetensors or .ckpt file itself."
        )
    with load_errors(str(path)):
        json.loads(index.read_text(encoding="utf-8"))
    if missing := [name for name in parts if not (path / name).is_dir()]:
        raise UserError(f"base_model_name: {path} is incomplete; missing folders: {', '.join(missing)}.")


def read_index(location: str | Path, config: TrainConfig) -> dict[str, Any]:
    """The model_index.json of a folder or hub name: component -> [library, class], and options of the pipeline.

    Raises:
        UserError: there is none, or it can't be read.
    """
    with load_errors(str(location)):
        return DiffusionPipeline.load_config(
            str(location),
            local_files_only=Path(location).is_dir() or config.offline_mode,
            cache_dir=config.huggingface_cache_dir or None,
        )


def local_path(config: TrainConfig, name: str | None = None, key: str = "base_model_name") -> Path | None:
    """A model's path if it is on this machine, None if it is a name on a hub; UserError if neither.

    Args:
        config: read for `offline_mode`, and for the base model if no name is given.
        name: a folder, a file or a hub name.
        key: the option it comes from.
    """
    name = config.base_model_name if name is None else name
    path = Path(name).expanduser()
    if path.exists():
        return path
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~", "models/")) and not path.suffix
    if not looks_like_hub or config.offline_mode:
        where = "is not on this machine and `offline_mode` is on" if looks_like_hub else "does not exist"
        raise UserError(
            f"{key}: {name} {where}. "
            "Expected a diffusers folder, a .safetensors or .ckpt file, or a name on the Hugging Face hub."
        )
    return None


def replaced_part(config: TrainConfig, part: str, kind: type[nn.Module]) -> FolderSource | Path | None:
    """Where `<part>.model_name` says that a component comes from; a path for a single file, None: the base model.

    A folder is the component itself, or a whole model with a folder of the component's name in it.
    """
    name = getattr(config, part).model_name
    if not name:
        return None
    path = local_path(config, name, f"{part}.model_name")
    if path is not None and path.is_file():
        return path
    inside = path is None or (path / part).is_dir()
    return FolderSource(path or name, config, {part: kind}, root=inside)
