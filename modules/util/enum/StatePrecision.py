from enum import StrEnum


class StatePrecision(StrEnum):
    """The codec that stores optimizer state."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16_SR = "bf16_sr"
    FP16 = "fp16"
    INT8_SR = "int8_sr"
    FACTORED = "factored"
