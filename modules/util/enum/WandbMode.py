from enum import StrEnum


class WandbMode(StrEnum):
    """Whether Weights & Biases sends what it logs while a run goes on, or keeps it in files that are sent later."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
