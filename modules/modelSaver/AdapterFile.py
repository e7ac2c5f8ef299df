import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modules.modelSaver.adapter_layout import ALPHA, DOWN, rank_of, recognize, split_key, unfold_alpha
from modules.util.AdapterNaming import AdapterNaming
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor

from safetensors import SafetensorError, safe_open

# Metadata key under which DIFFUSERS_LORA files of ours remember the alpha that was multiplied into their weights
FOLDED_ALPHA = "folded_alpha"
# The key under which diffusers keeps peft's settings, alpha among them
PEFT_METADATA = "lora_adapter_metadata"

_NOT_LAYERS = ("bundle_emb.", "emb_params", "string_to_param")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it was read from a file of any format.

    Attributes:
        path: where it was read, for messages.
        format: as recognised by content.
        layers: layer name as in the file -> internal part name -> tensor.
        extra: tensors that belong to no layer, such as bundled embeddings.
        metadata: the file's own.
    """

    path: str
    format: ModelFormat
    layers: Mapping[str, Mapping[str, Tensor]]
    extra: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def resolve(self, naming: AdapterNaming) -> dict[str, dict[str, dict[str, Tensor]]]:
        """component -> module path -> internal part name -> tensor, ready for `AdapterSet.load_layers`.

        Raises:
            UserError: the model has no such layers.
        """
        unknown = [name for name in self.layers if name not in naming.read]
        if unknown:
            raise UserError(
                f"{self.path}: {len(unknown)} of {len(self.layers)} layers are not in this model, "
                f"for example {unknown[0]}. The adapter was made for another kind of base model."
            )
        resolved: dict[str, dict[str, dict[str, Tensor]]] = {}
        for name, parts in self.layers.items():
            component, path = naming.read[name]
            target = resolved.setdefault(component, {})
            if path in target:
                raise UserError(f"{self.path}: the layer {component}.{path} occurs twice. Save the adapter again.")
            target[path] = dict(parts)
        return resolved


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Reads an adapter file of any format that we know, LoRA or another kind.

    Raises:
        UserError: the file is missing, damaged, or holds no adapter.
    """
    tensors, metadata = _read_tensors(os.fspath(path))
    layers: dict[str, dict[str, Tensor]] = {}
    extra: dict[str, Tensor] = {}
    strange = []
    for key in sorted(tensors):
        found = None if key.startswith(_NOT_LAYERS) else split_key(key)
        if found is not None:
            layers.setdefault(found[0], {})[found[1]] = tensors[key]
        else:
            extra[key] = tensors[key]
            strange += [] if key.startswith(_NOT_LAYERS) else [key]
    if not layers or strange:
        what = f"{strange[0]} is no part of an adapter" if strange else "it holds no adapter"
        raise UserError(f"{path}: {what}. Expected a LoRA file in kohya, ComfyUI, diffusers or OneTrainer format.")
    file_format = recognize(layers, tensors)
    if file_format == ModelFormat.DIFFUSERS_LORA:
        layers = _with_alpha(layers, metadata)
    return AdapterFile(os.fspath(path), file_format, layers, extra, metadata)


def _read_tensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file. Expected an adapter in safetensors format.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        pickled = _read_pickle(path)
        if pickled is None:
            raise UserError(
                f"{path}: not a complete safetensors file ({_one_line(error)}). "
                "It may have been cut off; copy, download or save it again."
            ) from error
        return pickled, {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read_pickle(path: str) -> dict[str, Tensor] | None:
    """The tensors of a torch file, if it holds tensors alone; None for anything else. Runs no code of the file's."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a foreign file makes the loader raise, the answer is: not readable
        return None
    if not isinstance(loaded, dict):
        return None
    loaded = loaded.get("state_dict", loaded)
    fits = isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())
    return loaded if fits and loaded else None


def _with_alpha(layers: dict[str, dict[str, Tensor]], metadata: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Diffusers layers with the alpha that the metadata knows. Without any, alpha is the rank."""
    folded = _json(metadata.get(FOLDED_ALPHA))
    settings = _json(metadata.get(PEFT_METADATA))
    result = {}
    for name, parts in layers.items():
        result[name] = parts
        if DOWN not in parts or ALPHA in parts:
            continue
        if folded is not None:
            alpha = folded.get(name) if isinstance(folded, dict) else folded
            if isinstance(alpha, (int, float)) and alpha > 0:
                result[name] = unfold_alpha(parts, torch.tensor(float(alpha)))
        elif isinstance(settings, dict):
            alpha = _peft_alpha(name, rank_of(parts) or 1, settings)
            result[name] = parts if alpha is None else parts | {ALPHA: torch.tensor(alpha)}
    return result


def _peft_alpha(name: str, rank: int, settings: Mapping[str, Any]) -> float | None:
    """The alpha of a layer in peft's settings, where patterns name the exceptions by the end of a path."""
    component, _, path = name.partition(".")
    alpha = settings.get(f"{component}.lora_alpha")
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
            break
    if alpha is None:
        return None
    # rank-stabilised: the scale is alpha/√rank
    return float(alpha) * (rank**0.5 if settings.get(f"{component}.use_rslora") else 1.0)


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:  # someone else's metadata is never a reason to fail
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
