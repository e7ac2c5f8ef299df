"""Number formats of the config as torch knows them."""

from modules.util.enum.DataType import DataType

import torch

# of weights, adapters and steps that are no codes
FLOAT_DTYPES = {
    DataType.FLOAT_32: torch.float32,
    DataType.BFLOAT_16: torch.bfloat16,
    DataType.FLOAT_16: torch.float16,
}
# of written files; None: as it was trained
OUTPUT_DTYPES: dict[DataType, torch.dtype | None] = {**FLOAT_DTYPES, DataType.NONE: None}
