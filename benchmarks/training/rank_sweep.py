"""Which learning rate suits a LoRA of each rank, for optimizers that promise that it is the same for all."""

from collections.abc import Sequence

from benchmarks.quality.contestants import choose
from benchmarks.training.size_sweep import SweepForm, rates_around

SIZES = (4, 8, 16, 32, 64)
SIZE_NAME = "rank"
MIDDLE = 0.1
# of `MIDDLE`: Adam's steps are larger than scaled ones at the same rate
SHARES = {"ADAMW": 0.1}
OPTIMIZERS = ("STIEFEL_LORA", "ADAMW")
COLUMNS: dict = {}
MEANINGS = {"STIEFEL_LORA": "Stiefel-LoRA", "ADAMW": "AdamW"}


def forms(sizes: Sequence[int], count: int, middle: float) -> list[SweepForm]:
    """Every optimizer with `count` learning rates around `middle` (AdamW: a tenth of it), alpha being the rank."""
    return [
        SweepForm(own.name, own.config_changes, rates_around(middle * SHARES.get(own.name, 1.0), count))
        for own in choose(OPTIMIZERS)
    ]
