"""A second file in a form that every program can load, for adapters of kinds that some do not know."""

import math
import os
from collections.abc import Callable, Mapping

from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.format_rules import holds
from modules.modelSaver.low_rank_copy import best_lora
from modules.modelSaver.save_adapter import save_parts
from modules.module.AdapterModule import AdapterModule
from modules.module.AdapterSet import AdapterSet
from modules.module.DiffFileKind import DIFF, DiffFileKind
from modules.module.FileKind import ALPHA
from modules.module.LoRAFileKind import DOWN, UP, LoRAFileKind
from modules.util.AdapterNaming import AdapterNaming
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.PortableCopy import PortableCopy

import torch
from torch import Tensor

# component -> layer -> part -> tensor
Components = dict[str, dict[str, dict[str, Tensor]]]
# for formats that can't hold a plain difference
FALLBACK = ModelFormat.KOHYA_LORA


def save_portable_copy(
    path: str | os.PathLike[str],
    adapters: Mapping[str, AdapterSet],
    form: PortableCopy,
    rank: int,
    model_format: ModelFormat,
    naming: AdapterNaming,
    description: AdapterDescription,
    dtype: DataType = DataType.FLOAT_32,
) -> str:
    """Writes each layer's ΔW, or the best LoRA for it, to a file of its own.

    Args:
        path: target, see `portable_path`.
        adapters: component name -> its adapters.
        form: `DIFF` or `LORA`.
        rank: of the LoRA; smaller layers get what they can hold.
        model_format: of the adapter; a format that can't hold the copy is replaced by kohya's.
        naming: the family's key map.
        description: for the metadata.
        dtype: of the written weights.

    Returns:
        A line for the user: what was written, and for `LORA` the relative error ‖ΔW − copy‖/‖ΔW‖ in the Frobenius
        norm, over all layers and that of the worst.

    Raises:
        UserError: as `save_adapter`.
    """
    assert form != PortableCopy.NONE, "nothing to write"
    if not holds(model_format, AdapterKind((DiffFileKind if form == PortableCopy.DIFF else LoRAFileKind).name)):
        model_format = FALLBACK
    if form == PortableCopy.DIFF:
        components = _each_layer(adapters, lambda adapter: {DIFF: adapter.merged_delta()})
        note = f"{os.fspath(path)}: every layer's change itself, exact but for the dtype."
    else:
        components, note = _low_rank(adapters, rank)
        note = f"{os.fspath(path)}: {note}"
    save_parts(path, components, model_format, naming, description, dtype)
    return note


def portable_path(path: str | os.PathLike[str], form: PortableCopy) -> str:
    """Where the copy of an adapter file stands: `<stem>.diff.safetensors` or `<stem>.lora.safetensors` beside it."""
    stem, ending = os.path.splitext(os.fspath(path))
    return f"{stem}.{form.lower()}{ending}"


def _low_rank(adapters: Mapping[str, AdapterSet], rank: int) -> tuple[Components, str]:
    lost = total = 0.0
    worst = (-1.0, "")

    def copy(adapter: AdapterModule) -> dict[str, Tensor]:
        nonlocal lost, total, worst
        delta = adapter.merged_delta()
        down, up, error = best_lora(delta, rank)
        square = float(torch.linalg.vector_norm(delta).square())
        lost, total = lost + error**2 * square, total + square
        worst = max(worst, (error, adapter.full_name))
        return {DOWN: down.to(delta.device), UP: up.to(delta.device), ALPHA: torch.tensor(float(down.shape[0]))}

    components = _each_layer(adapters, copy)
    error = math.sqrt(lost / total) if total else 0.0
    note = f"the best LoRA of rank {rank}, relative error {error:.3g} (at most {worst[0]:.3g}, in {worst[1]})."
    if error > 0.1:
        note += " A larger portable_copy_rank, or DIFF, is nearer."
    return components, note


def _each_layer(adapters: Mapping[str, AdapterSet], make: Callable[[AdapterModule], dict[str, Tensor]]) -> Components:
    return {
        component: {layer: make(adapter) for layer, adapter in adapter_set.adapters.items()}
        for component, adapter_set in adapters.items()
    }
