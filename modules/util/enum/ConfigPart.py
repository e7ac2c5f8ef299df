from enum import StrEnum


class ConfigPart(StrEnum):
    """How much of the config is written into a saved model."""

    NONE = "NONE"
    SETTINGS = "SETTINGS"
    ALL = "ALL"
