from enum import Enum


class PeftType(Enum):
    LORA = "LORA"
    LOHA = "LOHA"
    LOKR = "LOKR"
    OFT_2 = "OFT_2"

    def __str__(self):
        return self.value
