"""Where the components of a base model come from: a folder in diffusers' layout, the hub, or files of a family."""

import inspect
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from modules.model.component_files import choose_weights
from modules.model.families import facts_of, piped_family
from modules.model.hub import SETTINGS, Hub, Snapshot, check_is_model, component_folder
from modules.model.hub_components import fetch_component, fetch_settings
from modules.model.load_errors import LOAD_ERRORS
from modules.model.model_index import INDEX, index_name, plain_index
from modules.model.model_name import HubName, read_model_name
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import nn

import diffusers
from diffusers import ModelMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelSource(Protocol):
    """What a family loads its components from.

    Attributes:
        name: for messages.
    """

    name: str

    def module(self, component: str, dtype: torch.dtype) -> nn.Module:
        """A component with its weights, on the CPU. Raises UserError if it is missing or broken."""

    def empty(self, component: str) -> nn.Module:
        """The same component on the meta device: its layers without their weights."""

    def files(self, component: str) -> list[Path]:
        """The files on this machine that a component is read from; none where they can't be told."""

    def tokenizer(self, component: str) -> PreTrainedTokenizerBase:
        """A tokenizer by its component's name. Raises UserError if it is missing or broken."""

    def preparer(self, component: str) -> Any:
        """What prepares pictures for a text encoder. Raises UserError if it is missing or broken."""

    def scheduler_config(self) -> dict[str, Any]:
        """All options of the model's scheduler. Raises UserError if they are missing or broken."""


class FolderSource:
    """A folder in diffusers' layout, on this machine or on the hub. Of the latter, files come when they are needed.

    Args:
        location: the folder, or the repository.
        classes: component -> class, tokenizers included.
        root: whether components are subfolders; otherwise `location` is itself the one component of `classes`.

    Attributes:
        others: tokenizer -> where it comes from instead.
    """

    def __init__(self, location: Path | Snapshot, classes: Mapping[str, type], root: bool = True) -> None:
        self.name, self.classes, self.root, self._location = str(location), classes, root, location
        self.others: dict[str, FolderSource] = {}

    def beside(self, component: str, kind: type) -> "FolderSource":
        """Another component from the same place."""
        return FolderSource(self._location, {component: kind}, self.root)

    def index(self) -> dict[str, Any]:
        """Its list of components, see `read_index`."""
        return read_index(self._location)

    def fetch_settings(self) -> None:
        """Brings everything but weights here. Raises UserError if it can't be had."""
        if isinstance(self._location, Snapshot):
            fetch_settings(self._location, [*self.classes, "scheduler"] if self.root else [""])

    def fetch_weights(self, component: str) -> dict[str, Any]:
        """Brings a component's weights here; returns what the libraries must be told to load these.

        Raises:
            UserError: they can't be had.
        """
        folder, of_diffusers = component if self.root else "", issubclass(self.classes[component], ModelMixin)
        if isinstance(self._location, Snapshot):
            return fetch_component(self._location, folder, of_diffusers, component)
        path = self._location / folder
        choice = choose_weights([file.name for file in path.iterdir()] if path.is_dir() else [], of_diffusers)
        return choice.options if choice else {}

    def module(self, component: str, dtype: torch.dtype) -> nn.Module:
        kind = self.classes[component]
        # the two libraries name the argument differently
        name = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
        place, weights = self._place(component), self.fetch_weights(component)
        with load_errors(self.name, component):
            module, found = kind.from_pretrained(**place, **weights, **{name: dtype}, output_loading_info=True)
        # the libraries make missing weights up and tell of it only here
        if missing := sorted(found["missing_keys"]):
            raise UserError(
                f"The base model {self.name} is broken: it lacks {component}.{missing[0]}. Download it again."
            )
        return module

    def files(self, component: str) -> list[Path]:
        folder = self._location.folder if isinstance(self._location, Snapshot) else self._location
        folder = folder / component if self.root else folder
        return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def empty(self, component: str) -> nn.Module:
        kind, place = self.classes[component], self._place(component)
        with load_errors(self.name):
            if issubclass(kind, PreTrainedModel):
                config = kind.config_class.from_pretrained(**place)
            else:
                config = kind.load_config(**place)
            return empty_module(kind, config)

    def tokenizer(self, component: str) -> PreTrainedTokenizerBase:
        if component in self.others:
            return self.others[component].tokenizer(component)
        return self._read(component)

    def preparer(self, component: str) -> Any:
        return self._read(component)

    def _read(self, component: str) -> Any:
        place = self._place(component)
        with load_errors(self.name):
            return self.classes[component].from_pretrained(**place)

    def scheduler_config(self) -> dict[str, Any]:
        place = self._place("scheduler")
        with load_errors(self.name):
            config = diffusers.DDPMScheduler.load_config(**place)
            return dict(scheduler_class(config.get("_class_name")).from_config(config).config)

    def _place(self, component: str) -> dict[str, Any]:
        """Where the libraries find a component, whose settings are here now."""
        folder = self._location
        if isinstance(folder, Snapshot):
            fetch_settings(folder, [component if self.root else ""])
            folder = folder.folder
        return {
            "pretrained_model_name_or_path": str(folder),
            "local_files_only": True,
            **({"subfolder": component} if self.root else {}),
        }


def empty_module(kind: type[nn.Module], config: Any) -> nn.Module:
    """A module of diffusers or transformers on the meta device, frozen.

    Args:
        kind: its class.
        config: a mapping of options for diffusers, a config object for transformers.
    """
    with torch.device("meta"):
        module = kind(config) if issubclass(kind, PreTrainedModel) else kind.from_config(config)
    for path, part in list(module.named_modules()):
        computed = [value for value in vars(part).values() if isinstance(value, torch.Tensor) and value.is_meta]
        if computed and not part.state_dict():
            # tables that follow from options, and are in no file: made anew, with numbers
            options = inspect.signature(type(part)).parameters
            module.set_submodule(path, type(part)(**{name: getattr(part, name) for name in options}))
    return module.requires_grad_(False)


def library_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of diffusers or transformers that a component's class is, or is made of."""
    return next(base for base in kind.__mro__ if base.__module__.startswith(("diffusers.", "transformers.")))


@contextmanager
def load_errors(source: str, component: str = "") -> Iterator[None]:
    """Says in one line that a base model, or a component of it, can't be loaded, and why."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The base model {source} can't be loaded: a .bin file of {component or 'it'} is damaged, or holds "
            "Python objects beside tensors, and loading those can run any code. Get a version of it with safetensors "
            "files."
        ) from error
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The base model {source} can't be loaded: {reason}") from error


def scheduler_class(name: object) -> type[diffusers.SchedulerMixin]:
    """The scheduler of diffusers that a model names; ValueError for any other name: a stranger may have written it."""
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"its scheduler is {name!r}, expected a scheduler of diffusers")
    return kind


def check_finite(component: str, module: nn.Module, source: str) -> None:
    """Raises UserError if a weight is missing, NaN or infinite: training would only spread it."""
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise UserError(f"The base model {source} is broken: it lacks {component}.{name}. Download it again.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"The base model {source} is broken: {component}.{name} holds NaN or infinite values. "
                "Download it again."
            )


def check_folder(place: Path | Snapshot, components: Sequence[str], brought: Mapping[str, "Brought"] = {}) -> None:
    """UserError if a folder is not a model in diffusers' layout with all of these components.

    Args:
        place: the folder.
        components: that it must have.
        brought: of them, text encoders that the user may name a place for.
    """
    read_index(place)
    if isinstance(place, Snapshot):
        missing = [name for name in components if not place.names(name)]
    else:
        missing = [name for name in components if not (place / name).is_dir()]
    if not missing:
        return
    words = f"is incomplete; missing folders: {', '.join(missing)}."
    for name, own in brought.items():
        if {name, own.tokenizer} & {*missing}:
            words += f" Name a folder (or hub name) of {own.title} as {name}.model_name: it has both."
    if isinstance(place, Snapshot):
        raise place.lack(", ".join(missing), words)
    raise UserError(f"base_model_name: {place} {words}")


def check_pipeline(place: Path | Snapshot, config: TrainConfig) -> None:
    """UserError if a folder's pipeline tells that it is no model of the family, though its weights look the same."""
    index, own = read_index(place), facts_of(config.model_type)
    if own is None or getattr(config, own.components[0]).model_name:
        return
    name, other = index.get("_class_name"), piped_family(index)
    start = f"base_model_name: {place} is a model for {name}, "
    if what := own.foreign_pipelines.get(str(name)):
        raise UserError(f"{start}which {what} and can't be trained here. Name a model for {own.model_types[0]}.")
    if other is not None and {*own.model_types} & {*other.files_like}:
        raise UserError(
            f"{start}but model_type is {config.model_type}. Set model_type to {other.model_types[0]}, or name another "
            "model."
        )


def read_index(place: Path | Snapshot) -> dict[str, Any]:
    """The list of a folder's components: component -> [library, class], and options of the pipeline.

    Raises:
        UserError: there is none, or it can't be read.
    """
    folder = place
    if isinstance(place, Snapshot):
        check_is_model(place)
        place.fetch([index_name(place.names())], SETTINGS)
        folder = place.folder
    name = index_name([file.name for file in folder.iterdir()]) if folder.is_dir() else None
    if name is None:
        raise UserError(
            f"base_model_name: {place} has no {INDEX}. Expected a diffusers folder; "
            "for a single file, name the .safetensors or .ckpt file itself."
        )
    with load_errors(str(place)):
        index = json.loads((folder / name).read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError(f"{name} is no object")
        return plain_index(index)


class Brought(NamedTuple):
    """A text encoder that published models lack, so that its folder is named by itself.

    Attributes:
        tokenizer: name of its tokenizer, which that folder has as well.
        title: what to look for.
    """

    tokenizer: str
    title: str


@dataclass(frozen=True)
class ComponentFile:
    """A file that holds one component, on this machine or on the hub.

    Attributes:
        name: as the user wrote it.
        key: the option that names it.
    """

    name: str
    key: str

    def path(self, hub: Hub) -> Path:
        """Where it is, fetched if it has to be. Raises UserError if it can't be had."""
        found = hub.place(self.name, self.key)
        assert isinstance(found, Path)
        return found


def names_folder(config: TrainConfig, component: str) -> bool:
    """Whether `<component>.model_name` names a folder, on this machine or on the hub. Raises UserError if it can't."""
    name = getattr(config, component).model_name
    found = read_model_name(name, f"{component}.model_name") if name else None
    return found is not None and not (found.file if isinstance(found, HubName) else found.is_file())


def replaced_component(
    config: TrainConfig, component: str, kind: type[nn.Module], hub: Hub
) -> FolderSource | ComponentFile | None:
    """Where `<component>.model_name` says that a component comes from; None: the base model.

    A folder is the component itself, or a whole model with a folder of the component's name in it.

    Raises:
        UserError: it does not exist, or can't be had.
    """
    name, key = getattr(config, component).model_name, f"{component}.model_name"
    if not name:
        return None
    found = read_model_name(name, key)
    if found.file if isinstance(found, HubName) else found.is_file():
        return ComponentFile(name, key)
    place = hub.place(name, key)
    inside = bool(component_folder(place, component)) if isinstance(place, Snapshot) else (place / component).is_dir()
    return FolderSource(place, {component: kind}, root=inside)
