from enum import StrEnum


class EMAMode(StrEnum):
    """Whether an averaged copy of the weights is kept, and on which device."""

    OFF = "OFF"
    GPU = "GPU"
    CPU = "CPU"
