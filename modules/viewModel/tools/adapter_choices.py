"""What tools that write adapters let one choose."""

from enum import StrEnum


class AdapterFormat(StrEnum):
    """The formats that the converter writes."""

    KOHYA_LORA = "KOHYA_LORA"
    COMFY_LORA = "COMFY_LORA"
    DIFFUSERS_LORA = "DIFFUSERS_LORA"
    ORIGINAL_LORA = "ORIGINAL_LORA"
    LEGACY_LORA = "LEGACY_LORA"
    INTERNAL = "INTERNAL"


class AdapterShape(StrEnum):
    """The kinds that the converter makes of others."""

    LORA = "lora"
    DIFF = "diff"


class WrittenType(StrEnum):
    """The number formats that the converter writes."""

    FLOAT_32 = "FLOAT_32"
    FLOAT_16 = "FLOAT_16"
    BFLOAT_16 = "BFLOAT_16"
