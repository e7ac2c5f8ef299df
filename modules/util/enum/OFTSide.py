from enum import StrEnum


class OFTSide(StrEnum):
    """The side of a layer that OFT rotates."""

    INPUT = "INPUT"
    OUTPUT = "OUTPUT"
