"""The methods that a coordinate check compares, and what it does where nothing else is said. Quick to load."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod

RANK, BLOCK = "lora_rank", "oft_block_size"
# option of a size -> its name in tables
SIZE_NAMES = {RANK: "rank", BLOCK: "block"}
RANKS, BLOCKS = (4, 16, 64), (4, 16, 64)


@dataclass(frozen=True)
class CheckedMethod:
    """A way to train layers.

    Attributes:
        title: in tables.
        options: of the config.
        size: the option that says how large it is; "" if it has no size.
    """

    title: str
    options: Mapping[str, Any]
    size: str = ""


def _adapter(title: str, kind: PeftType, decomposed: bool, size: str) -> CheckedMethod:
    options = {"training_method": TrainingMethod.LORA, "peft_type": kind, "lora_decompose": decomposed}
    return CheckedMethod(title, options, size)


# name on the command line -> method
CHECKED: Mapping[str, CheckedMethod] = {
    "lora": _adapter("LoRA", PeftType.LORA, False, RANK),
    "dora": _adapter("DoRA", PeftType.LORA, True, RANK),
    "oft": _adapter("OFT", PeftType.OFT_2, False, BLOCK),
    "dora-oft": _adapter("DoRA-OFT", PeftType.OFT_2, True, BLOCK),
    "loha": _adapter("LoHa", PeftType.LOHA, False, RANK),
    "lokr": _adapter("LoKr", PeftType.LOKR, False, RANK),
    "full": CheckedMethod("full", {"training_method": TrainingMethod.FINE_TUNE}),
}
# full fine-tuning takes many times their memory, so it is measured only where it is asked for
USUAL = ("lora", "dora", "oft", "dora-oft")
# steps before the one that is measured: the first moves up factors only, which start at zero
WARM = (1, 8)
BATCH = 4
# A step that changes as much at all sizes within this factor is called flat. On the tiny base it lies between the
# spreads of coherent scaled steps (at most 1.61 over three seeds) and those of the prediction under laws that need
# another rate for another size (at least 1.97), see docs/coord_check.md
BOUND = 1.75
