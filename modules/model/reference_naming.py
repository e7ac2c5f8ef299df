"""The layers of base models without their weights, so that tools know what a layer in an adapter file is.

A model is known by its denoiser's class. What a class is called and how its layers are named is asked of the families.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modules.model.BaseModel import BaseModel, model_families
from modules.model.component_files import choose_weights
from modules.model.families import FAMILIES
from modules.model.hub import Hub
from modules.model.hub_components import fetch_component, fetch_settings
from modules.model.model_index import INDEX, index_name, is_component, plain_index
from modules.model.ModelSource import read_index
from modules.model.single_file import load_single_file, model_type_of
from modules.model.weights_file import first_line
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError

import torch
from torch import nn

import diffusers
import transformers
from diffusers import DiffusionPipeline
from transformers import PreTrainedModel

RESOURCES = Path(__file__).parents[2] / "resources"


def standard_models() -> Iterator[ReferenceModel]:
    """The standard models one after the other, on the meta device; each takes a fraction of a second to build."""
    known: dict[tuple[Path, str, str], nn.Module] = {}
    for facts in FAMILIES:
        family = model_families()[facts.model_types[0]]
        for model in facts.standard_models:
            components = {}
            for component in family.trainable_components:
                # what several models have in common stands above, and is built once
                own = RESOURCES / model.folder / component
                place = own.parent if own.is_dir() else own.parent.parent
                changes = next(iter(model.types.values())).get(component, {})
                key = place, component, json.dumps(changes)
                if key not in known:
                    known[key] = _empty(place, component, family.modules[component].__name__, changes)
                components[component] = known[key]
            yield _reference(model.name, components, model.architecture, model.base_version)


@cache
def _denoisers() -> dict[str, type[BaseModel]]:
    """Class of a denoiser -> the first family that has it."""
    found: dict[str, type[BaseModel]] = {}
    for family in model_families().values():
        found.setdefault(family.modules[family.trainable_components[0]].__name__, family)
    return found


@cache
def _text_encoders() -> dict[str, type[PreTrainedModel]]:
    """Those text encoders that can have adapters, by the names of their classes."""
    families = model_families().values()
    kinds = [family.modules[component] for family in families for component in family.trainable_components[1:]]
    return {kind.__name__: kind for kind in kinds}


def _adaptable(classes: Mapping[str, str]) -> dict[str, str]:
    """Those of a model's components that can have adapters: the denoiser, and what its families train beside it."""
    known = {
        (name, family.modules[name].__name__)
        for family in model_families().values()
        if family.modules[family.trainable_components[0]].__name__ in classes.values()
        for name in family.trainable_components
    }
    return {name: kind for name, kind in classes.items() if (name, kind) in known}


def reference_of_folder(folder: Path) -> ReferenceModel:
    """A base model in diffusers' layout, on the meta device.

    Raises:
        UserError: the folder is none, or its denoiser is of a class without a key map.
    """
    components = {name: _empty(folder, name, kind) for name, kind in _adaptable_classes(folder).items()}
    return _reference(str(folder), components)


def load_component(folder: Path, name: str) -> nn.Module:
    """One component of a folder in diffusers' layout with its weights, float32, frozen.

    Raises:
        UserError: its files are missing or broken.
    """
    kind = component_classes(folder)[name]
    loader = getattr(diffusers, kind, None) or getattr(transformers, kind)
    of_diffusers = hasattr(diffusers, kind)
    # the two libraries name the argument differently
    options: dict[str, Any] = {"torch_dtype" if of_diffusers else "dtype": torch.float32}
    if (folder / name).is_dir() and (choice := choose_weights(os.listdir(folder / name), of_diffusers)):
        options |= choice.options
    try:
        module = loader.from_pretrained(str(folder), subfolder=name, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(f"{folder / name}: can't be loaded: {reason}. Download the model again.") from error
    return module.requires_grad_(False).eval()


def load_folder(folder: Path) -> ReferenceModel:
    """`reference_of_folder` with weights, float32."""
    return _reference(str(folder), {name: load_component(folder, name) for name in _adaptable_classes(folder)})


def load_base(path: Path) -> ReferenceModel:
    """A base model with weights, float32: a folder in diffusers' layout, or one file of Stable Diffusion."""
    if path.is_dir():
        return load_folder(path)
    return reference_of_pipeline(single_file_pipeline(path), str(path))


def base_place(name: str, key: str, hub: Hub, weights: bool = True, whole: bool = False) -> Path:
    """Where a base model is on this machine. Of one on the hub that is fetched which the functions above need.

    Args:
        name: folder, file or hub name.
        key: the option it comes from.
        hub: of the run.
        weights: whether weights are needed.
        whole: whether those of all components are.

    Raises:
        UserError: it does not exist, or can't be had.
    """
    place = hub.place(name, key)
    if isinstance(place, Path):
        return place
    index = read_index(place)
    classes = component_classes(place.folder)
    fetch_settings(place, [component for component in classes if place.names(component)])
    adaptable = _adaptable(classes)
    for component in classes if weights else ():
        of_diffusers = index[component][0] == "diffusers"
        if component in adaptable or (whole and choose_weights(place.names(component), of_diffusers)):
            fetch_component(place, component, of_diffusers, component)
    return place.folder


def reference_of_pipeline(pipeline: DiffusionPipeline, name: str) -> ReferenceModel:
    """The reference of a loaded pipeline, which shares its components."""
    adaptable = _adaptable({component: _class_name(module) for component, module in pipeline.components.items()})
    return _reference(
        name, {component: pipeline.components[component].requires_grad_(False) for component in adaptable}
    )


def single_file_pipeline(path: Path) -> DiffusionPipeline:
    """Loads one file of Stable Diffusion 1.x, 2.x or XL, whichever it is. Raises UserError if it is none of these."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist. Expected a diffusers folder, a .safetensors or a .ckpt file.")
    return load_single_file(path, model_type_of(path))


def component_classes(folder: Path) -> dict[str, str]:
    """Component -> name of its class, as the folder's index says."""
    name = index_name(os.listdir(folder) if folder.is_dir() else ())
    if name is None:
        raise UserError(f"{folder}: has no {INDEX}. Expected the folder of a model in diffusers' layout.")
    listed = plain_index(_read_json(folder / name))
    return {name: entry[1] for name, entry in listed.items() if is_component(entry) and entry[1]}


def _adaptable_classes(folder: Path) -> dict[str, str]:
    """Component -> class, of the denoiser and the text encoders."""
    classes = component_classes(folder)
    if not any(kind in _denoisers() for kind in classes.values()):
        kinds = ", ".join(sorted(classes.values()))
        raise UserError(f"{folder}: found {kinds}, expected a model with one of {', '.join(_denoisers())}.")
    return _adaptable(classes)


def _reference(
    name: str, components: Mapping[str, nn.Module], architecture: str = "", base_version: str = ""
) -> ReferenceModel:
    family = next(_denoisers()[kind] for kind in map(_class_name, components.values()) if kind in _denoisers())
    encoders = {key: module for key, module in components.items() if _class_name(module) not in _denoisers()}
    naming = family.name_layers(components[family.trainable_components[0]], encoders)
    return ReferenceModel(name, components, naming, architecture, base_version)


def _class_name(module: object) -> str:
    return type(module).__name__


def _empty(folder: Path, name: str, kind: str, changes: Mapping[str, object] = MappingProxyType({})) -> nn.Module:
    """A component on the meta device, by its config, of which some options may be changed."""
    config = {**_read_json(folder / name / "config.json"), **changes}
    try:
        with torch.device("meta"):
            if kind in _text_encoders():
                encoder = _text_encoders()[kind]
                return encoder(encoder.config_class.from_dict(config)).requires_grad_(False)
            return getattr(diffusers, kind).from_config(config).requires_grad_(False)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(f"{folder / name}: its config.json makes no {kind}: {reason}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read: {first_line(error).rstrip('.')}. Download the model again.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: found a JSON {type(data).__name__}, expected an object.")
    return data
