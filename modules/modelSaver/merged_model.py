"""Writing a base model with an adapter in its weights, as a folder in diffusers' layout."""

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modules.model.model_index import INDEX, index_name
from modules.modelSaver.save_model import name_components_here
from modules.util.atomic_file import write_failure, write_safetensors
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from safetensors import SafetensorError, safe_open


@contextmanager
def folder_at_once(target: Path, overwrite: bool, sources: Sequence[Path]) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when all went well, and is removed otherwise.

    Args:
        target: the folder; where it is a link, it keeps pointing to the folder that is replaced.
        overwrite: replaces a model that is there, and nothing else.
        sources: what is read meanwhile, folders and files.

    Raises:
        UserError: `target` exists and may not be replaced, overlaps a source, or can't be written.
    """
    target = target.resolve()
    for source in sources:
        if overlap(target, source.resolve()):
            raise UserError(f"{target}: is, holds or lies in {source}, which is read. Choose another folder.")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists. Choose another name, or give --overwrite.")
    if target.exists() and not (target.is_dir() and index_name(os.listdir(target))):
        raise UserError(
            f"{target}: has no {INDEX}. Only the folder of a model in diffusers' layout is replaced; choose "
            "another name."
        )
    partial = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    try:
        with writing(target):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial
        with writing(target):
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.replace(target, old)
            os.replace(partial, target)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Says of an OSError in its block that `target` can't be written."""
    try:
        yield
    except OSError as error:
        raise write_failure(target, error) from error


def overlap(target: Path, source: Path) -> bool:
    """Whether one is the other or lies in it; both resolved. Compares places, as some disks ignore case."""
    if not source.exists():
        return False
    above_target = (path for path in (target, *target.parents) if path.exists())
    above_source = (source, *source.parents) if target.exists() else ()
    return any(path.samefile(source) for path in above_target) or any(path.samefile(target) for path in above_source)


def write_merged_folder(
    base: Path, target: Path, changed: dict[str, dict[str, Tensor]], dtype: torch.dtype | None = None
) -> None:
    """Copies the diffusers folder `base` to `target` with some tensors replaced; names and shards stay as they are.

    Args:
        base: a diffusers folder with safetensors weights.
        target: an empty folder.
        changed: component -> tensor name in the module -> new value.
        dtype: of all weights of the changed components; None keeps the base's own.

    Raises:
        UserError: a component has no safetensors file, or a tensor has no place in it; a file can't be copied.
    """
    try:
        shutil.copytree(base, target, dirs_exist_ok=True, ignore=_weights_of(base, changed))
    except shutil.Error as error:
        source, _, reason = error.args[0][0]
        raise UserError(f"{source}: can't be copied into the merged model ({reason}).") from error
    name_components_here(target)
    for component, tensors in changed.items():
        left = dict(tensors)
        for file in _weight_files(base / component):
            _rewrite(file, target / component / file.name, left, dtype)
        if left:
            raise UserError(
                f"{base / component}: holds no {next(iter(left))}, so the adapter can't be merged into its files. "
                "Save the base model anew with diffusers."
            )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded by default: those without a variant such as fp16 in their names."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.name.count(".") == 1]
    if not files:
        raise UserError(
            f"{folder}: has no safetensors weights, expected one file or more without a variant in its name. "
            "Save the base model anew with diffusers."
        )
    return files


def _weights_of(base: Path, components: Collection[str]):
    """A filter for `shutil.copytree`: weights of the changed components, in every form, are not copied."""
    folders = {base / component for component in components}

    def ignored(folder: str, names: list[str]) -> list[str]:
        endings = (".safetensors", ".bin", ".msgpack", ".ckpt", ".h5", ".onnx")
        return [name for name in names if Path(folder) in folders and name.endswith(endings)]

    return ignored


def _rewrite(source: Path, target: Path, changed: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Writes one file anew; what was used of `changed` is removed from it."""
    try:
        with safe_open(source, framework="pt", device="cpu") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source}: can't be read ({error}). Download the model again.") from error
    for name, tensor in tensors.items():
        # transformers 5 has no `text_model.` level in CLIPTextModel, files of transformers 4 have it
        own = name if name in changed else name.removeprefix("text_model.")
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        new = changed.pop(own).reshape(tensor.shape) if own in changed else tensor
        tensors[name] = new.detach().cpu().to(wanted)
        if tensor.is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise UserError(f"{name}: too large for {wanted} after merging. Give --dtype FLOAT_32.")
    write_safetensors(target, tensors, metadata)


def changed_tensors(module: nn.Module, layers: Collection[str], biases: bool) -> dict[str, Tensor]:
    """Weights, and on request biases, of the layers by their names in the module's state."""
    endings = ("weight", "bias") if biases else ("weight",)
    return {
        f"{layer}.{ending}": tensor
        for layer in layers
        for ending in endings
        if (tensor := getattr(module.get_submodule(layer), ending)) is not None
    }
