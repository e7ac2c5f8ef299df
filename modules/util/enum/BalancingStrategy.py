from enum import StrEnum


class BalancingStrategy(StrEnum):
    """What a concept's `balancing` number means: passes over its files, or files drawn per epoch."""

    REPEATS = "REPEATS"
    SAMPLES = "SAMPLES"
