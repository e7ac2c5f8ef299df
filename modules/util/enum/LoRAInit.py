from enum import StrEnum


class LoRAInit(StrEnum):
    """How the factors of a fresh LoRA are drawn; one of them is zero, so that nothing changes.

    `KAIMING`: down uniform in ±1/√fan_in, up zero. `NORMAL`: down normal with variance 1/fan_in, up zero.
    `ORTHONORMAL`: up with orthonormal columns, down zero.
    """

    KAIMING = "KAIMING"
    NORMAL = "NORMAL"
    ORTHONORMAL = "ORTHONORMAL"
