"""DoRA on outputs for readers that divide by the wrong norm.

A weight decomposition on outputs gives W' = m·(W + ΔW)/‖W + ΔW‖ for each row. ComfyUI divides such a file's rows by ‖W‖
instead. With the base at hand the scale m·‖W‖/‖W + ΔW‖ makes the two the same. A file that holds it says so in its
metadata, and what it holds is turned back when it is read. (On inputs ComfyUI divides by the right norm.)
"""

from collections.abc import Mapping

from modules.modelSaver.adapter_kinds import AdapterKind, kind_of_parts
from modules.module.AdapterModule import AdaptedLayer
from modules.module.dense_weight import dense_weight
from modules.module.kinds import class_of_layers
from modules.module.magnitude import DORA_SCALE
from modules.util.config.TrainConfig import TrainConfig

import torch
from torch import Tensor

# Metadata of files whose scales are made for a reader that divides by ‖W‖
DORA_NORM, BASE_NORM = "dora_norm", "base"


def reads_two_norms(kind: AdapterKind) -> bool:
    """Whether readers differ in the norm for this kind: decomposed on outputs, with a ΔW that is added to W."""
    return kind.dora == "output" and kind.file_kind.adds


def has_two_norms(parts: Mapping[str, Tensor]) -> bool:
    """`reads_two_norms` for the kind of these parts."""
    return reads_two_norms(kind_of_parts(parts))


def for_base_norm(parts: Mapping[str, Tensor], layer: AdaptedLayer, component: str, name: str) -> dict[str, Tensor]:
    """Parts whose scale is right for a reader that divides by ‖W‖; others are returned as they are.

    Args:
        parts: by internal name, of a decomposition on outputs, whose scale is m.
        layer: the base layer with its weight.
        component: the layer's.
        name: its module path there.
    """
    if not has_two_norms(parts):
        return dict(parts)
    return dict(parts) | {
        DORA_SCALE: parts[DORA_SCALE].float() * _norm_ratio(parts, layer, component, name).to(parts[DORA_SCALE].device)
    }


def from_base_norm(parts: Mapping[str, Tensor], layer: AdaptedLayer, component: str, name: str) -> dict[str, Tensor]:
    """Undoes `for_base_norm`, but for a rounding in float32."""
    if not has_two_norms(parts):
        return dict(parts)
    return dict(parts) | {
        DORA_SCALE: parts[DORA_SCALE].float() / _norm_ratio(parts, layer, component, name).to(parts[DORA_SCALE].device)
    }


@torch.no_grad()
def _norm_ratio(parts: Mapping[str, Tensor], layer: AdaptedLayer, component: str, name: str) -> Tensor:
    """‖W‖/‖W + ΔW‖ of each row, in the shape of the scale."""
    plain = {part: tensor for part, tensor in parts.items() if part != DORA_SCALE}
    kind = class_of_layers({name: plain})
    adapter = kind.create(layer, component, name, TrainConfig(**kind.options_of(plain, layer)), 0)
    adapter.load_parts(plain)
    weight = dense_weight(layer)
    changed = weight + adapter.merged_delta().to(weight.device).view_as(weight)
    # the addition with which ComfyUI keeps empty rows finite
    epsilon = torch.finfo(torch.float32).eps
    norms = (torch.linalg.vector_norm(rows.flatten(1), dim=1) + epsilon for rows in (weight, changed))
    ratio = next(norms) / next(norms)
    return ratio.view(parts[DORA_SCALE].shape)
