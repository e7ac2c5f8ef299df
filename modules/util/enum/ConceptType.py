from enum import StrEnum


class ConceptType(StrEnum):
    """What the images of a concept are used for."""

    STANDARD = "STANDARD"
    VALIDATION = "VALIDATION"
    PRIOR_PREDICTION = "PRIOR_PREDICTION"
