"""Writing adapter files."""

import json
import os
from collections.abc import Callable, Mapping

from modules.modelSaver.adapter_kinds import AdapterKind, alpha_of, file_kind_of, kind_of_parts
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.adapter_metadata import AdapterDescription, ComponentLayers, adapter_metadata
from modules.modelSaver.base_norm import BASE_NORM, DORA_NORM, for_base_norm, has_two_norms
from modules.modelSaver.format_rules import check_kind, holds
from modules.modelSaver.fused_layers import joins_exactly, put_together, stands_alone
from modules.modelSaver.peft_settings import FOLDED_ALPHA
from modules.module.AdapterModule import AdaptedLayer
from modules.module.AdapterSet import AdapterSet
from modules.module.FileKind import PartError
from modules.util.AdapterNaming import AdapterNaming, FusedLayer, LayerId
from modules.util.atomic_file import safetensors_sha256, write_safetensors
from modules.util.dtypes import OUTPUT_DTYPES
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.ParameterInfo import layer_path
from modules.util.UserError import UserError

import torch
from torch import Tensor

# (component, module path) -> the base layer
BaseLayers = Callable[[str, str], AdaptedLayer]


def save_adapter(
    path: str | os.PathLike[str],
    adapters: Mapping[str, AdapterSet],
    model_format: ModelFormat,
    naming: AdapterNaming,
    description: AdapterDescription,
    dtype: DataType = DataType.FLOAT_32,
) -> str:
    """Writes an adapter file that is whole or not there, with metadata. The same input gives the same bytes.

    Args:
        path: target, usually `*.safetensors`.
        adapters: component name -> its adapters.
        model_format: one of `writable_formats(naming)` that can hold the adapters' kind.
        naming: the family's key map.
        description: for the metadata.
        dtype: of the written weights; alpha and DoRA's scale are always float32.

    Returns:
        SHA-256 of the tensor bytes, hex; it also stands in the metadata.

    Raises:
        UserError: a format or dtype that can't be written, a format that can't hold the kind, a layer that no program
            would find, a NaN, a full disk.
    """
    components = {component: adapter_set.layers() for component, adapter_set in adapters.items()}

    def base(component: str, layer: str) -> AdaptedLayer:
        return adapters[component].adapters[layer].layer

    return save_parts(path, components, model_format, naming, description, dtype, base)


def save_parts(
    path: str | os.PathLike[str],
    components: ComponentLayers,
    model_format: ModelFormat,
    naming: AdapterNaming,
    description: AdapterDescription,
    dtype: DataType = DataType.FLOAT_32,
    base: BaseLayers | None = None,
) -> str:
    """`save_adapter` for parts that no adapter holds: component -> layer -> part -> tensor.

    Args:
        base: finds the base layer. Without its weights, which may be on the meta device, a DoRA on outputs can't be
            adjusted for ComfyUI, see `base_norm.py`, and COMFY_LORA then holds what the other formats hold. Without
            the layer what depends on it, see `FileKind.for_layer`, stays as it is, which OneTrainer does not continue.
    """
    components = {component: layers for component, layers in components.items() if layers}
    check_output(model_format, naming, dtype, kind_of_components(components))
    metadata = adapter_metadata(description, components)
    tensors = encode_adapter(components, model_format, naming, dtype, base)
    if LAYOUTS[model_format].peft:
        metadata[FOLDED_ALPHA] = _folded_alphas(components, naming.write[model_format])
    if _adjusts(model_format, components, base):
        metadata[DORA_NORM] = BASE_NORM
    digest = safetensors_sha256(tensors)
    # the same number under both names that programs look for: everything after the header is hashed
    metadata |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    write_safetensors(path, tensors, metadata)
    return digest


def check_output(
    model_format: ModelFormat, naming: AdapterNaming, dtype: DataType, kind: AdapterKind | None = None
) -> None:
    """UserError unless the format, for this kind, and the dtype can be written; to be asked before a run, too."""
    allowed = writable_formats(naming)
    if model_format not in allowed:
        raise UserError(
            f"output_model_format: {model_format} cannot be written for this adapter; "
            f"expected one of {', '.join(allowed)}."
        )
    if dtype not in OUTPUT_DTYPES:
        raise UserError(
            f"output_dtype: {dtype} cannot be written for adapters; expected one of {', '.join(OUTPUT_DTYPES)}."
        )
    if kind is not None:
        check_kind(model_format, kind)


def check_joins(
    model_format: ModelFormat, naming: AdapterNaming, kind: AdapterKind, trained: Callable[[str], bool]
) -> None:
    """UserError if the format has trained layers as one, and adapters of this kind can't be joined.

    To be asked before a run; `save_adapter` would find it when the training is done.

    Args:
        trained: module path -> whether the layer gets an adapter.
    """
    for name, group in naming.write_fused.get(model_format, {}).items():
        chosen = [path for _, path in group.layers if trained(path)]
        if not chosen or group.swapped or (joins_exactly(kind) and not (kind.dora and len(chosen) < len(group.layers))):
            continue
        if model_format in naming.write_apart:
            continue
        others = [other for other in writable_formats(naming) if not naming.write_fused.get(other)]
        others = [other for other in (*naming.write_apart, *others) if holds(other, kind)]
        why = "layers that are not trained together" if joins_exactly(kind) else "several layers"
        raise UserError(
            f"output_model_format: {model_format} has {', '.join(path for _, path in group.layers)} as one layer, "
            f"{name}, and {kind} of {why} can't be joined exactly. Choose one of {', '.join(others)}, or another kind "
            "of adapter such as LoRA, DoRA on outputs or OFT on outputs."
        )


def check_halves(model_format: ModelFormat, naming: AdapterNaming, adapters: Mapping[str, AdapterSet]) -> None:
    """UserError if the format exchanges halves of a layer's outputs, and the adapter there, by its sizes, ties them.

    To be asked before the first step, of fresh adapters; `save_adapter` would find it when the training is done.

    Args:
        adapters: component name -> its adapters.
    """
    apart = naming.write_apart.get(model_format, {})
    for name, group in naming.write_fused.get(model_format, {}).items():
        component, path = group.layers[0]
        if not group.swapped or component not in adapters or path not in adapters[component].adapters:
            continue
        parts = adapters[component].adapters[path].parts()
        try:
            _joined(name, group, {(component, path): parts}, apart)
        except UserError as error:
            others = [other for other in writable_formats(naming) if not naming.write_fused.get(other)]
            others = [other for other in others if holds(other, kind_of_parts(parts))]
            raise UserError(
                f"{error} Choose one of {', '.join(others)}, or leave {path} out by layer_filter."
            ) from error


def writable_formats(naming: AdapterNaming) -> list[ModelFormat]:
    """The formats in which adapters of this family can be written."""
    return [model_format for model_format in LAYOUTS if model_format in naming.write]


def kind_of_components(components: ComponentLayers) -> AdapterKind | None:
    """The one kind of all layers, None if there are none. Raises UserError if there are several."""
    found: dict[AdapterKind, str] = {}
    for component, layers in components.items():
        for layer, parts in layers.items():
            try:
                found.setdefault(kind_of_parts(parts), layer_path(component, layer))
            except PartError as error:
                raise UserError(f"{layer_path(component, layer)}: {error.part} {error}") from error
    if len(found) > 1:
        examples = " and ".join(f"{kind} in {name}" for kind, name in found.items())
        raise UserError(f"An adapter file holds one kind of adapter, found {examples}.")
    return next(iter(found), None)


def encode_adapter(
    components: ComponentLayers,
    model_format: ModelFormat,
    naming: AdapterNaming,
    dtype: DataType,
    base: BaseLayers | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file: component -> layer -> part -> tensor, under the names of `model_format`.

    Args:
        base: as in `save_parts`.

    Raises:
        UserError: a layer has no name in the family's key map, or a value does not survive the dtype.
    """
    layout = LAYOUTS[model_format]
    tensors: dict[str, Tensor] = {}
    for name, parts in _named_layers(_fitted(components, model_format, base), model_format, naming).items():
        kind = file_kind_of(parts)
        for part, tensor in kind.written(parts, layout).items():
            key = f"{name}.{part}"
            tensors[key] = _converted(key, tensor, torch.float32 if part in kind.exact else OUTPUT_DTYPES[dtype])
    return tensors


def _fitted(components: ComponentLayers, model_format: ModelFormat, base: BaseLayers | None) -> ComponentLayers:
    """The parts as the format's reader wants them, as far as that depends on the base layer: scales and kernels."""
    if base is None:
        return components
    adjust, layout = _adjusts(model_format, components, base), LAYOUTS[model_format]

    def fit(parts: Mapping[str, Tensor], component: str, name: str) -> Mapping[str, Tensor]:
        layer = base(component, name)
        if adjust:
            return for_base_norm(parts, layer, component, name)
        return file_kind_of(parts).for_layer(parts, layout, layer)

    return {
        component: {name: fit(parts, component, name) for name, parts in layers.items()}
        for component, layers in components.items()
    }


def _named_layers(
    components: ComponentLayers, model_format: ModelFormat, naming: AdapterNaming
) -> dict[str, Mapping[str, Tensor]]:
    """Layer name in the file -> parts. Layers that the format joins are joined.

    Where a fused layer's adapters can't be joined, they stand alone under names that the format has for it.
    """
    names = naming.write[model_format]
    groups = naming.write_fused.get(model_format, {})
    group_of = {layer: name for name, group in groups.items() for layer in group.layers}
    named: dict[str, Mapping[str, Tensor]] = {}
    waiting: dict[str, dict[LayerId, Mapping[str, Tensor]]] = {}
    for component, layers in components.items():
        for layer, parts in layers.items():
            place = (component, layer)
            if place not in names and place not in group_of:
                raise UserError(
                    f"output_model_format: {model_format} has no name for the layer {layer_path(component, layer)}, so "
                    f"no program would load it. Choose another of {', '.join(writable_formats(naming))}."
                )
            if place in names:
                named[names[place]] = parts
            else:
                waiting.setdefault(group_of[place], {})[place] = parts
    for name, found in waiting.items():
        named |= _joined(name, groups[name], found, naming.write_apart.get(model_format, {}))
    return named


def _joined(
    name: str,
    group: FusedLayer,
    found: Mapping[LayerId, Mapping[str, Tensor]],
    apart: Mapping[LayerId, str],
) -> dict[str, Mapping[str, Tensor]]:
    """Name in the file -> parts: the fused layer's, or those of each layer under its name in `apart`."""
    try:
        return {name: put_together([found.get(layer) for layer in group.layers], group)}
    except PartError as error:
        kind = kind_of_parts(next(iter(found.values())))
        if found.keys() <= apart.keys() and stands_alone(kind, group):
            return {apart[layer]: parts for layer, parts in found.items()}
        layers = ", ".join(layer_path(*layer) for layer in group.layers)
        raise UserError(f"output_model_format: {name}, which stands for {layers}: {error.part} {error}") from error


def _adjusts(model_format: ModelFormat, components: ComponentLayers, base: BaseLayers | None) -> bool:
    """Whether scales are written for a reader that divides by ‖W‖."""
    if base is None or not LAYOUTS[model_format].base_norm:
        return False
    return any(
        has_two_norms(parts) and not base(component, name).weight.is_meta
        for component, layers in components.items()
        for name, parts in layers.items()
    )


def _converted(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    converted = tensor.detach().cpu()
    if dtype is not None and converted.is_floating_point():
        converted = converted.to(dtype)
    if not torch.isfinite(converted).all():
        if torch.isfinite(tensor).all():
            raise UserError(f"output_dtype: {key} is too large for {dtype}. Set output_dtype to FLOAT_32.")
        raise UserError(f"{key} holds NaN or infinite values, so it is not saved. Use the last good backup.")
    return converted.contiguous()


def _folded_alphas(components: ComponentLayers, names: Mapping[tuple[str, str], str]) -> str:
    """JSON of the alpha that all layers share, or of every layer's."""
    alphas = {
        names[component, layer]: alpha_of(parts)
        for component, layers in components.items()
        for layer, parts in layers.items()
        if file_kind_of(parts).folds_alpha and (component, layer) in names
    }
    return json.dumps(next(iter(alphas.values())) if len(set(alphas.values())) == 1 else alphas, sort_keys=True)
