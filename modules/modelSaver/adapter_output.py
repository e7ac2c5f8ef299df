"""Writing what a run with adapters has trained."""

from collections.abc import Mapping
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.model.model_name import short_name
from modules.modelSaver.adapter_kinds import AdapterKind, kind_of_parts
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.format_rules import comfy_remarks, onetrainer_remarks
from modules.modelSaver.output import Warn, config_comment, replace_output
from modules.modelSaver.portable_copy import portable_path, save_portable_copy
from modules.modelSaver.save_adapter import check_joins, check_output, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.kinds import adapter_class_of
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.load import pack
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.PortableCopy import PortableCopy
from modules.util.LayerFilter import LayerFilter

import torch
from torch import nn

# what SAFETENSORS, which leaves the layout open, means for an adapter: every program reads it
USUAL_FORMAT = ModelFormat.KOHYA_LORA


def adapter_format(config: TrainConfig) -> ModelFormat:
    """The layout of the file that the run writes."""
    chosen = config.output_model_format
    return USUAL_FORMAT if chosen == ModelFormat.SAFETENSORS else chosen


def planned_kind(config: TrainConfig) -> AdapterKind:
    """The kind of adapter that a run will write: that of the file it continues, else that of its options."""
    if config.lora_model_name:
        return read_adapter(config.lora_model_name).kind
    # made for a layer of no importance, so that no second place needs to know what options mean; its size says nothing
    # about the kind, and a rank that it is too narrow for becomes smaller. skip_init, so that nothing is drawn from
    # torch's generator
    layer = nn.utils.skip_init(nn.Linear, 8, 8)
    nn.init.ones_(layer.weight)
    return kind_of_parts(adapter_class_of(config).create(layer, "any component", "layer", config, config.seed).parts())


def check_adapter_output(config: TrainConfig, naming: AdapterNaming, warn: Warn) -> None:
    """To be asked before a run: can what it trains be written as the config says, and who can read it?

    Args:
        config: format, dtype and kind of adapter.
        naming: the family's key map.
        warn: gets what a user should know about the chosen kind in the chosen format.

    Raises:
        UserError: a format or dtype that can't be written, or a format that can't hold this kind.
    """
    kind, model_format = planned_kind(config), adapter_format(config)
    trained = LayerFilter.from_config(config, {}).matches
    check_output(model_format, naming, config.output_dtype, kind)
    check_joins(model_format, naming, kind, trained)
    kernels = read_adapter(config.lora_model_name).kernels if config.lora_model_name else config.oft_kernels
    # a portable copy is for ComfyUI
    found = comfy_remarks(model_format, kind, naming) if config.portable_copy == PortableCopy.NONE else []
    for remark in found + onetrainer_remarks(model_format, kind, naming, trained, channels=not kernels):
        warn(remark)


def describe(model: BaseModel, config: TrainConfig, adapters: Mapping[str, AdapterSet]) -> AdapterDescription:
    """What the file tells about its training. Facts of rotations are those of the adapters, which may be a file's."""
    rotations = [a for own in adapters.values() for a in own.adapters.values() if a.neumann is not None]
    return AdapterDescription(
        title=Path(config.output_model_destination).stem,
        base_model=short_name(config.base_model_name),
        config_hash=pack(config).config_hash(),
        comment=config_comment(config),
        neumann=rotations[0].neumann if rotations else None,
        kernels=any(a.kernels for a in rotations) if rotations else None,
        **model.file_description(),
    )


def save_adapters(
    path: Path,
    adapters: Mapping[str, AdapterSet],
    model: BaseModel,
    config: TrainConfig,
    warn: Warn,
) -> Path:
    """Writes the adapter in the configured format and returns its path. An older file there is set aside.

    A portable copy, if one is wanted, stands beside the run's output; intermediate saves have none.
    """
    naming, description = model.adapter_naming(), describe(model, config, adapters)
    model_format = adapter_format(config)

    def adapter(fresh: Path) -> None:
        save_adapter(fresh, adapters, model_format, naming, description, config.output_dtype)

    def copy(fresh: Path) -> None:
        nonlocal note
        note = save_portable_copy(
            fresh, adapters, config.portable_copy, config.portable_copy_rank, model_format, naming, description,
            config.output_dtype,
        ).replace(str(fresh), str(copied), 1)  # fmt: skip

    note = ""
    # a run in half precision saves while its autocast is on, in which sums would lose their digits
    with torch.autocast(model.device.type, enabled=False):
        replace_output(path, adapter, warn)
        if config.portable_copy != PortableCopy.NONE and path == Path(config.output_model_destination):
            copied = Path(portable_path(path, config.portable_copy))
            replace_output(copied, copy, warn)
            warn(note)
    return path
