"""Which learning rate suits OFT, for each block size and each way of scaling its weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.training.size_sweep import SweepForm, rates_around
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.PeftType import PeftType

SIZES = (4, 8, 16, 32, 64)
MIDDLE = 0.02
SIZE_NAME = "block size"
# form -> options, and factor f from raw to effective weights for block size b
FORMS: Mapping[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "unscaled": ({"oft_scaled": False}, lambda b: 1.0),
    "ELEMENTS": (
        {"oft_scaled": True, "oft_scale_mode": OFTScaleMode.ELEMENTS}, lambda b: 1 / math.sqrt(b * (b - 1) / 2)
    ),
    "ROW": ({"oft_scaled": True, "oft_scale_mode": OFTScaleMode.ROW}, lambda b: 1 / (2 * math.sqrt(b - 1))),
}  # fmt: skip

# with n numbers in a block of size b
MEANINGS = {
    "unscaled": "unscaled: weights as they are",
    "ELEMENTS": "ELEMENTS: weights / √n",
    "ROW": "ROW (as OneTrainer): weights / 2√(b − 1)",
}


def output_variance(form: str, size: int) -> float:
    """What one step of size η in every weight, whatever their signs, adds to the variance of a layer's rotated input
    of variance 1, in units of η².

    Near the identity R ≈ I + 2Q, so each number of a block gets b − 1 others, each times ±2ηf: 4(b − 1)f².
    """
    return 4 * (size - 1) * FORMS[form][1](size) ** 2


def forms(sizes: Sequence[int], count: int, middle: float) -> list[SweepForm]:
    """Every form with `count` learning rates, centred on the one at which a step has the output variance of `middle`²
    for the middle size, so that all forms are searched over an equally wide range around the same place.
    """
    centre = sorted(sizes)[len(sizes) // 2]
    return [
        SweepForm(
            name,
            lambda size, own=options: {"peft_type": PeftType.OFT_2, "oft_block_size": size, **own},
            rates_around(middle / math.sqrt(output_variance(name, centre)), count),
        )
        for name, (options, _) in FORMS.items()
    ]


COLUMNS = {
    "√(output variance) there": lambda form, size, rate: f"{rate * math.sqrt(output_variance(form, size)):.3f}",
}
