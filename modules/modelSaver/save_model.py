"""Writing whole models: folders in diffusers' layout, and single files in the original one."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from modules.model.model_index import MODULAR_INDEX, index_file, index_name
from modules.model.ModelSource import read_index
from modules.util.atomic_file import write_json, write_safetensors
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import ModelMixin

# what the libraries look for in a component's folder
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
WEIGHT_ENDINGS = (".safetensors", ".bin", ".msgpack", ".ckpt", ".h5", ".onnx", ".index.json")


def write_component(folder: Path, module: nn.Module, dtype: torch.dtype | None) -> None:
    """Writes config and weights of a component of diffusers or transformers, on any device, into a folder.

    Args:
        folder: is made if need be; a config that is there stays.
        module: keeps its own number format.
        dtype: of the written weights; None: the module's own.

    Raises:
        UserError: a weight does not survive the dtype, or is NaN; the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = written(module.state_dict(), dtype, folder.name)
    config = folder / "config.json"
    kept = config.read_bytes() if config.is_file() else None
    if isinstance(module, ModelMixin):
        module.save_config(folder)
        write_safetensors(folder / DIFFUSERS_WEIGHTS, tensors, {"format": "pt"})
    elif type(module).__name__.startswith("CLIPText"):
        # transformers 5 dropped this level from CLIPTextModel; files have it, for every version
        tensors = {_with_level(name): tensor for name, tensor in tensors.items()}
        module.config.save_pretrained(folder)
        write_safetensors(folder / TRANSFORMERS_WEIGHTS, tensors, {"format": "pt"})
    else:
        # by its own writer, which knows by what names files call the tensors
        module.save_pretrained(folder, state_dict=tensors)
    if kept is not None:
        config.write_bytes(kept)
        # readers load weights in the format that stands there
        options = json.loads(kept)
        dtypes = {key: _dtype_name(tensors) for key in ("dtype", "torch_dtype") if key in options}
        if not dtypes.items() <= options.items():
            write_json(config, {**options, **dtypes})


def _with_level(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    return str(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())).removeprefix("torch.")


def written(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, component: str) -> dict[str, Tensor]:
    """Copies of tensors as a file gets them: on the CPU, contiguous, floating ones in `dtype`.

    Raises:
        UserError: one of them is infinite or NaN in that format.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu", dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
        if own.is_floating_point() and not torch.isfinite(own).all():
            if torch.isfinite(tensor).all():
                raise UserError(f"output_dtype: {component}.{name} is too large for {dtype}. Set it to FLOAT_32.")
            raise UserError(
                f"{component}.{name} holds NaN or infinite values, so it is not saved. Use the last good backup."
            )
        found[name] = own.contiguous()
    return found


def copy_folder(base: Path, target: Path, without_weights: Collection[str], leave_out: Collection[str] = ()) -> None:
    """Copies a model in diffusers' layout; links become files.

    Weights beside its components, as some repositories have them in other layouts, are those of the base: they and
    hidden files are left out.

    Args:
        base: the model's folder.
        target: is made.
        without_weights: components of which the weights are not copied.
        leave_out: components that are not copied at all.

    Raises:
        UserError: a file can't be copied.
    """
    folders = {base / component for component in without_weights}

    def ignored(folder: str, names: list[str]) -> list[str]:
        if Path(folder) == base:
            return [
                name for name in names if name in leave_out or name.startswith(".") or name.endswith(WEIGHT_ENDINGS)
            ]
        return [name for name in names if Path(folder) in folders and name.endswith(WEIGHT_ENDINGS)]

    try:
        shutil.copytree(base, target, dirs_exist_ok=True, ignore=ignored)
    except shutil.Error as error:
        source, _, reason = error.args[0][0]
        raise UserError(f"{source}: can't be copied into the saved model ({reason}).") from error
    name_components_here(target)


def name_components_here(folder: Path) -> None:
    """Lets the index of a copied model name the copy's own components, where it says of each where it is."""
    if index_name(os.listdir(folder)) == MODULAR_INDEX:
        write_index(folder, read_index(folder))


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Writes the list of components, by which diffusers knows the pipeline and the classes of its components."""
    name, content = index_file(index)
    write_json(folder / name, content)


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Iterable[CheckpointTensor],
    state_of: Callable[[str], Mapping[str, Tensor]],
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
) -> None:
    """Writes a single-file checkpoint that is whole or not there. The same input gives the same bytes.

    Args:
        path: target.
        tensors: what it holds; those of one component follow each other.
        state_of: component -> its tensors by name, on any device; asked once for each.
        dtype: of all floating tensors; None: as they are.
        metadata: of the file.

    Raises:
        UserError: a value does not survive the dtype, or is NaN; the disk is full.
    """
    found: dict[str, Tensor] = {}
    component, state = "", {}
    for target in tensors:
        if target.sources and target.sources[0][0] != component:
            component = target.sources[0][0]
            state = written(state_of(component), dtype, component)
        found[target.name] = target.join([state[name] for _, name in target.sources])
    write_safetensors(path, found, metadata)


def model_metadata(
    title: str, architecture: str, prediction_type: str, config_hash: str, comment: str = ""
) -> dict[str, str]:
    """Metadata of a checkpoint by the Stability AI model metadata standard; empty fields are left out.

    Args:
        title: shown by model managers.
        architecture: for example "stable-diffusion-v1".
        prediction_type: "epsilon" or "v"; "" where it has no meaning.
        config_hash: hash of the training config.
        comment: free text.
    """
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.prediction_type": prediction_type,
        "modelspec.description": comment,
        "config_hash": config_hash,
    }
    return {key: value for key, value in metadata.items() if value}
