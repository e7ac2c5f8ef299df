"""Saving the result without losing an older one."""

import filecmp
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.atomic_file import write_failure
from modules.util.config.load import pack
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.enum.ModelFormat import ModelFormat

# what SAFETENSORS, which leaves the layout open, means for an adapter: every program reads it
USUAL_FORMAT = ModelFormat.KOHYA_LORA


def set_aside(path: Path, warn: Callable[[str], None]) -> None:
    """Renames an existing file to `name-1`, `name-2` …, so that nothing a user made is overwritten."""
    if not path.exists():
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    try:
        os.replace(path, kept)
    except OSError as error:
        raise write_failure(kept, error) from error
    warn(f"{path} existed; the older file is kept as {kept}.")


def adapter_format(config: TrainConfig) -> ModelFormat:
    """The layout of the file that the run writes."""
    chosen = config.output_model_format
    return USUAL_FORMAT if chosen == ModelFormat.SAFETENSORS else chosen


def describe(model: BaseModel, config: TrainConfig) -> AdapterDescription:
    """What the file tells about its training. No times or paths of this run: the same run gives the same bytes."""
    comment = ""
    if config.include_train_config != ConfigPart.NONE:
        full = pack(config) if config.include_train_config == ConfigPart.ALL else config
        settings = full.to_dict(sparse=True)
        # whether the run was resumed is no property of its result
        settings.pop("continue_last_backup", None)
        comment = json.dumps(settings, sort_keys=True)
    return AdapterDescription(
        title=Path(config.output_model_destination).stem,
        base_model=Path(config.base_model_name).name,
        config_hash=pack(config).config_hash(),
        comment=comment,
        **model.file_description(),
    )


def save_output(
    path: Path,
    adapters: Mapping[str, AdapterSet],
    model: BaseModel,
    config: TrainConfig,
    warn: Callable[[str], None],
) -> Path:
    """Writes the adapter in the configured format and returns its path. An older file there is set aside."""
    # written under another name first: the older file keeps its own until the new one is safely there
    fresh = path.with_name(f"{path.stem}.new{path.suffix}")
    naming, description = model.adapter_naming(), describe(model, config)
    save_adapter(fresh, adapters, adapter_format(config), naming, description, config.output_dtype)
    try:
        if path.exists() and filecmp.cmp(fresh, path, shallow=False):
            # a finished run that is run again: nothing is new
            fresh.unlink()
            return path
        set_aside(path, warn)
        os.replace(fresh, path)
    except OSError as error:
        raise write_failure(path, error) from error
    return path
