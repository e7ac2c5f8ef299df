from enum import StrEnum


class TagDropoutMode(StrEnum):
    """Which tags of a caption are dropped together."""

    FULL = "FULL"
    RANDOM = "RANDOM"
    RANDOM_WEIGHTED = "RANDOM WEIGHTED"
