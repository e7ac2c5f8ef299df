from enum import Enum


class LearningRateScheduler(Enum):
    CONSTANT = "CONSTANT"
    LINEAR = "LINEAR"
    CUSTOM = "CUSTOM"

    def __str__(self):
        return self.value
