"""The arithmetic of a run: which number format its steps and samples are computed in."""

from contextlib import AbstractContextManager, nullcontext

from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import FLOAT_DTYPES

import torch


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """Autocast to `train_dtype` on `device`; nothing for formats that need none."""
    dtype = FLOAT_DTYPES.get(config.train_dtype, torch.float32)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=config.enable_autocast_cache)
