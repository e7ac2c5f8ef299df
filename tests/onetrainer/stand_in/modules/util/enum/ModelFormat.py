from enum import Enum


class ModelFormat(Enum):
    SAFETENSORS = "SAFETENSORS"
    INTERNAL = "INTERNAL"

    def __str__(self):
        return self.value
