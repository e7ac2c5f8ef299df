"""Saving the result without losing an older one."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.module.AdapterSet import AdapterSet
from modules.modelSaver.save_adapter import save_adapter
from modules.trainer.TrainProgress import TrainProgress
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


def config_metadata(config: TrainConfig, progress: TrainProgress) -> dict[str, str]:
    """What the file tells about its training. No times or paths of this run: the same run gives the same bytes."""
    metadata = {
        "config_hash": pack(config).config_hash(),
        "ss_steps": str(progress.step),
        "ss_epoch": str(progress.epoch),
        "ss_learning_rate": str(config.learning_rate),
        "ss_optimizer": str(config.optimizer.optimizer),
        "ss_seed": str(config.seed),
        "ss_batch_size_per_device": str(config.batch_size),
        "ss_gradient_accumulation_steps": str(config.gradient_accumulation_steps),
        "ss_base_model_name": Path(config.base_model_name).name,
    }
    if config.include_train_config != ConfigPart.NONE:
        full = pack(config) if config.include_train_config == ConfigPart.ALL else config
        metadata["train_config"] = json.dumps(full.to_dict(), sort_keys=True)
    return metadata


def save_output(
    path: Path,
    adapters: Mapping[str, AdapterSet],
    model: BaseModel,
    config: TrainConfig,
    progress: TrainProgress,
    warn: Callable[[str], None],
) -> Path:
    """Writes the adapter in the configured format and returns its path. An older file there is set aside."""
    chosen = config.output_model_format
    layout = USUAL_FORMAT if chosen == ModelFormat.SAFETENSORS else chosen
    metadata = config_metadata(config, progress)
    # written under another name first: the older file keeps its own until the new one is safely there
    fresh = path.with_name(f"{path.stem}.new{path.suffix}")
    save_adapter(fresh, adapters, layout, model.adapter_naming(), metadata, config.output_dtype)
    set_aside(path, warn)
    try:
        os.replace(fresh, path)
    except OSError as error:
        raise write_failure(path, error) from error
    return path
