from enum import StrEnum


class CenteredWDMode(StrEnum):
    """How the starting value p0 of centered weight decay is stored."""

    FULL = "full"
    FLOAT8 = "float8"
    INT8 = "int8"
    INT4 = "int4"
    WRAPPED8 = "wrapped8"
    WRAPPED4 = "wrapped4"
