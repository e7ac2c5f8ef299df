"""The alpha of diffusers' and peft's adapters, which stands beside their tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.modelSaver.adapter_kinds import file_kind_of, rank_of
from modules.module.FileKind import ALPHA
from modules.util.config.patterns import PatternError, find_pattern

import torch
from torch import Tensor, nn

# Metadata key under which DIFFUSERS_LORA files of ours remember the alpha that was multiplied into their weights
FOLDED_ALPHA = "folded_alpha"
# The key under which diffusers keeps peft's settings, alpha among them
PEFT_METADATA = "lora_adapter_metadata"
# What peft's own files start with, and the file beside them that holds their settings
PEFT_START, PEFT_CONFIG = "base_model.model.", "adapter_config.json"


def with_alpha(
    layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], path: str
) -> dict[str, dict[str, Tensor]]:
    """Layers of a diffusers or peft file with the alpha that its metadata or peft's config beside it know.

    Without any, alpha is the rank, which needs no saying.

    Args:
        layers: layer name in the file -> parts.
        metadata: the file's own.
        path: of the file.
    """
    folded = _json(metadata.get(FOLDED_ALPHA))
    settings = _json(metadata.get(PEFT_METADATA))
    beside = Path(path).with_name(PEFT_CONFIG)
    if any(name.startswith(PEFT_START) for name in layers) and beside.is_file():
        settings = _json(beside.read_text(encoding="utf-8", errors="replace"))
    result = {}
    for name, parts in layers.items():
        result[name] = dict(parts)
        kind = file_kind_of(parts)
        if ALPHA in parts or not kind.has_alpha:
            continue
        if folded is not None:
            alpha = folded.get(name) if isinstance(folded, dict) else folded
            if isinstance(alpha, (int, float)) and alpha > 0 and kind.folds_alpha:
                result[name] = kind.unfold_alpha(parts, torch.tensor(float(alpha)))
        elif isinstance(settings, dict):
            alpha = _alpha_in(settings, name, rank_of(parts) or 1)
            if alpha is not None:
                result[name][ALPHA] = torch.tensor(alpha)
    return result


def peft_neumann(path: str) -> bool:
    """Whether a peft file's rotations are the Neumann series, by the config beside it; peft's default is yes."""
    beside = Path(path).with_name(PEFT_CONFIG)
    settings = _json(beside.read_text(encoding="utf-8", errors="replace")) if beside.is_file() else None
    return bool(settings.get("use_cayley_neumann", True)) if isinstance(settings, dict) else True


def peft_turns_back(path: str, layer: nn.Module) -> bool:
    """Whether the same numbers turn a layer the other way in peft than in ours.

    peft's exact rotation is (I − Q)(I + Q)⁻¹, the inverse of its own series and of ours, and it turns a convolution
    as a linear layer, where we turn it the other way, as OneTrainer does.
    """
    return isinstance(layer, nn.Conv2d) == peft_neumann(path)


def _alpha_in(settings: Mapping[str, Any], name: str, rank: int) -> float | None:
    """The alpha of a layer in peft's settings, where patterns name the exceptions by the end of a path."""
    if name.startswith(PEFT_START):
        prefix, path = "", name.removeprefix(PEFT_START)
    else:  # diffusers puts the component before each setting
        component, _, path = name.partition(".")
        prefix = f"{component}."
    # of other kinds than LoRA it is called alpha
    alpha = settings.get(f"{prefix}lora_alpha", settings.get(f"{prefix}alpha"))
    for pattern, value in (settings.get(f"{prefix}alpha_pattern") or {}).items():
        if _names(pattern, path):
            alpha = value
            break
    if not isinstance(alpha, (int, float)):
        return None
    # rank-stabilised: the scale is alpha/√rank
    return float(alpha) * (rank**0.5 if settings.get(f"{prefix}use_rslora") else 1.0)


def _names(pattern: str, path: str) -> bool:
    """Whether a pattern of peft's, which stands in a foreign file, names a layer by the end of its path."""
    try:
        return find_pattern(rf"(.*\.)?({pattern})").fullmatch(path)
    except PatternError:
        # peft writes plain names, too, in which a bracket is a bracket
        return path == pattern or path.endswith(f".{pattern}")


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:  # someone else's metadata is never a reason to fail
        return None
