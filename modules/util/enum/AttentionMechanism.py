from enum import StrEnum


class AttentionMechanism(StrEnum):
    """The kernel that computes attention."""

    SDP = "SDP"
    FLASH = "FLASH"
    CUDNN = "CUDNN"
    FLEX = "FLEX"
    XFORMERS = "XFORMERS"
