from enum import StrEnum


class OrthogonalGradient(StrEnum):
    """Over which slices the gradient's component along the parameter is removed."""

    DISABLED = "disabled"
    FLATTENED = "flattened"
    PER_RANK = "per_rank"
