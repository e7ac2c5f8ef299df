from enum import StrEnum


class ParameterRole(StrEnum):
    """What a trainable tensor is for its layer; optimizer rules choose their step by it."""

    LORA_DOWN = "LORA_DOWN"
    LORA_UP = "LORA_UP"
    OFT = "OFT"
    DORA_SCALE = "DORA_SCALE"
    HIDDEN = "HIDDEN"
    INPUT = "INPUT"
    OUTPUT = "OUTPUT"
    VECTOR = "VECTOR"
