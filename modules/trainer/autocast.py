"""The arithmetic of a run: which number format its steps and samples are computed in."""

from contextlib import AbstractContextManager, nullcontext

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType

import torch

AUTOCAST = {DataType.FLOAT_16: torch.float16, DataType.BFLOAT_16: torch.bfloat16}


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """Autocast to `train_dtype` on `device`; nothing for formats that need none."""
    dtype = AUTOCAST.get(config.train_dtype)
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=config.enable_autocast_cache)
