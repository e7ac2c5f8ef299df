from enum import StrEnum


class PeftType(StrEnum):
    """The kind of adapter."""

    LORA = "LORA"
    LOHA = "LOHA"
    OFT_2 = "OFT_2"
    LOKR = "LOKR"
