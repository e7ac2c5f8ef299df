"""Number formats of the config as torch knows them, and the arithmetic of a run in them."""

from contextlib import AbstractContextManager, nullcontext

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType

import torch

# of weights, adapters and steps that are no codes
FLOAT_DTYPES = {
    DataType.FLOAT_32: torch.float32,
    DataType.BFLOAT_16: torch.bfloat16,
    DataType.FLOAT_16: torch.float16,
}
# of a run's arithmetic
TRAIN_DTYPES = {**FLOAT_DTYPES, DataType.TFLOAT_32: torch.float32}
# of written files; None: as it was trained
OUTPUT_DTYPES: dict[DataType, torch.dtype | None] = {**FLOAT_DTYPES, DataType.NONE: None}


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """Autocast to `train_dtype` on `device`; nothing for formats that need none."""
    dtype = TRAIN_DTYPES.get(config.train_dtype, torch.float32)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=config.enable_autocast_cache)
