from enum import Enum


class TrainingMethod(Enum):
    LORA = "LORA"
    FINE_TUNE = "FINE_TUNE"
    EMBEDDING = "EMBEDDING"

    def __str__(self):
        return self.value
