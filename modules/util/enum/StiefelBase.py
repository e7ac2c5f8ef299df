from enum import StrEnum


class StiefelBase(StrEnum):
    """What Stiefel-LoRA takes its direction from: AdamW's moments, or the sign of the momentum."""

    ADAMW = "ADAMW"
    SIGN = "SIGN"
