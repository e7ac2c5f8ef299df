from enum import StrEnum


class OFTScaleMode(StrEnum):
    """The divisor of scaled OFT weights, for block size b: `ELEMENTS` √(b(b−1)/2), `ROW` 2√(b−1)."""

    ELEMENTS = "ELEMENTS"
    ROW = "ROW"
