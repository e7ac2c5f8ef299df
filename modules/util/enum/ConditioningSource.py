from enum import StrEnum


class ConditioningSource(StrEnum):
    """Where a family's conditioning image comes from: nowhere, a file beside the image, or the image and its mask."""

    NONE = "NONE"
    FILE = "FILE"
    MASK = "MASK"
