from enum import StrEnum


class PortableCopy(StrEnum):
    """A second file in a form that every program can load, beside the adapter.

    `NONE`: no such file. `DIFF`: each layer's ΔW itself, exact and large. `LORA`: the best LoRA of a given rank.
    """

    NONE = "NONE"
    DIFF = "DIFF"
    LORA = "LORA"
