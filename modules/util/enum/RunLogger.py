from enum import StrEnum


class RunLogger(StrEnum):
    """What logs a run beside TensorBoard."""

    NONE = "NONE"
    WANDB = "WANDB"
    TRACKIO = "TRACKIO"
