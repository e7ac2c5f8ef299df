"""Writing adapter files."""

import json
import os
from collections.abc import Mapping

from modules.modelSaver.adapter_layout import ALPHA, DOWN, LAYOUTS, fold_alpha
from modules.modelSaver.adapter_metadata import AdapterDescription, ComponentLayers, adapter_metadata, alpha_of
from modules.modelSaver.AdapterFile import FOLDED_ALPHA
from modules.module.AdapterSet import AdapterSet
from modules.util.AdapterNaming import AdapterNaming
from modules.util.atomic_file import safetensors_sha256, write_safetensors
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor

OUTPUT_DTYPES: dict[DataType, torch.dtype | None] = {
    DataType.FLOAT_32: torch.float32,
    DataType.FLOAT_16: torch.float16,
    DataType.BFLOAT_16: torch.bfloat16,
    DataType.NONE: None,  # as trained
}


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
        model_format: one of `writable_formats(naming)`.
        naming: the family's key map.
        description: for the metadata.
        dtype: of the written weights; alpha is always float32.

    Returns:
        SHA-256 of the tensor bytes, hex; it also stands in the metadata.

    Raises:
        UserError: a format or dtype that can't be written, a layer that no program would find, a NaN, a full disk.
    """
    components = {component: adapter_set.layers() for component, adapter_set in adapters.items()}
    check_output(model_format, naming, dtype)
    tensors = encode_adapter(components, model_format, naming, dtype)
    metadata = adapter_metadata(description, components)
    if LAYOUTS[model_format].fold_alpha:
        metadata[FOLDED_ALPHA] = _folded_alphas(components, naming.write[model_format])
    digest = safetensors_sha256(tensors)
    # the same number under both names that programs look for: everything after the header is hashed
    metadata |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    write_safetensors(path, tensors, metadata)
    return digest


def check_output(model_format: ModelFormat, naming: AdapterNaming, dtype: DataType) -> None:
    """UserError unless the format and the dtype can be written; to be asked before a run, too."""
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


def writable_formats(naming: AdapterNaming) -> list[ModelFormat]:
    """The formats in which adapters of this family can be written."""
    return [model_format for model_format in LAYOUTS if model_format in naming.write]


def encode_adapter(
    components: ComponentLayers, model_format: ModelFormat, naming: AdapterNaming, dtype: DataType
) -> dict[str, Tensor]:
    """The tensors of a file: component -> layer -> part -> tensor, under the names of `model_format`.

    Raises:
        UserError: a layer has no name in the family's key map, or a value does not survive the dtype.
    """
    layout, names = LAYOUTS[model_format], naming.write[model_format]
    tensors: dict[str, Tensor] = {}
    for component, layers in components.items():
        for layer, parts in layers.items():
            if (component, layer) not in names:
                raise UserError(
                    f"output_model_format: {model_format} has no name for the layer {component}.{layer}, so no program "
                    f"would load it. Choose another of {', '.join(writable_formats(naming))}."
                )
            name = names[component, layer]
            for part, tensor in (fold_alpha(parts) if layout.fold_alpha else parts).items():
                key = f"{name}.{layout.spelling.get(part, part)}"
                tensors[key] = _converted(key, tensor, None if part == ALPHA else OUTPUT_DTYPES[dtype])
    return tensors


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
        if DOWN in parts
    }
    return json.dumps(next(iter(alphas.values())) if len(set(alphas.values())) == 1 else alphas, sort_keys=True)
