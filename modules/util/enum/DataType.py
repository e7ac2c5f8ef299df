from enum import StrEnum


class DataType(StrEnum):
    """A number format for weights or arithmetic. `NONE` leaves the choice to a more general setting."""

    NONE = "NONE"
    FLOAT_8 = "FLOAT_8"
    FLOAT_16 = "FLOAT_16"
    FLOAT_32 = "FLOAT_32"
    BFLOAT_16 = "BFLOAT_16"
    TFLOAT_32 = "TFLOAT_32"
    INT_8 = "INT_8"
    NFLOAT_4 = "NFLOAT_4"
    FLOAT_W8A8 = "FLOAT_W8A8"
    INT_W8A8 = "INT_W8A8"
    FLOAT_W8A8_COMPRESSED = "FLOAT_W8A8_COMPRESSED"
    INT_W8A8_COMPRESSED = "INT_W8A8_COMPRESSED"
    GGUF = "GGUF"
    GGUF_A8_FLOAT = "GGUF_A8_FLOAT"
    GGUF_A8_INT = "GGUF_A8_INT"
