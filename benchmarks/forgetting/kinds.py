"""The kinds of weight decay that are compared, each as options of the optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.transfer.Setting import DORA, DORA_OFT, FULL, LORA, OFT

NONE, RATE, STANDARD, CENTERED = "none", "lower rate", "standard", "centered"
FISHER, FISHER_CENTERED, SCALED = "Fisher", "Fisher + centered", "scaled_wd"
FULL_MODE = "full"
MODES = (FULL_MODE, "float8", "int8", "int4", "wrapped8", "wrapped4")
# rotations start from zero only: "centered" and "standard" are the same decay of them
FROM_ZERO = (LORA, OFT)


@dataclass(frozen=True)
class Kind:
    """A kind of weight decay, or what it is compared with.

    Attributes:
        options: strength and storage mode -> options of the optimizer. A strength is decay a step, as steps are scaled;
            of `RATE` it is the share of the learning rate.
        strengths: method -> what is tried, in increasing order of how much it holds back.
    """

    options: Callable[[float, str], dict[str, Any]]
    strengths: Mapping[str, tuple[float, ...]]

    def methods(self) -> tuple[str, ...]:
        return tuple(self.strengths)


def _centered(strength: float, mode: str) -> dict[str, Any]:
    return {"centered_wd": strength, "centered_wd_mode": mode}


def _plain(strength: float, mode: str) -> dict[str, Any]:
    return {"weight_decay": strength}


# Decay a step, from where a training of 160 steps first tells it to where little is learned. Toward zero, a tenth of it
# takes whole weights and magnitudes apart. Fisher's form multiplies decay by 1/RMS of what decays, some 20 to 50.
PULL, SHRINK = (0.003, 0.01, 0.03, 0.1, 0.3), (0.0003, 0.001, 0.003, 0.01, 0.03)
FISHER_SHRINK = (0.00001, 0.00003, 0.0001, 0.0003, 0.001)
# a new kind is one line here
KINDS: Mapping[str, Kind] = {
    NONE: Kind(lambda strength, mode: {}, dict.fromkeys((FULL, DORA, OFT, LORA, DORA_OFT), (0.0,))),
    RATE: Kind(lambda strength, mode: {}, dict.fromkeys((FULL, DORA, OFT), (0.7, 0.5, 0.35, 0.25))),
    STANDARD: Kind(_plain, {FULL: SHRINK, DORA: SHRINK, OFT: PULL}),
    CENTERED: Kind(_centered, {FULL: PULL, DORA: PULL}),
    FISHER: Kind(lambda strength, mode: {"weight_decay": strength, "fisher_wd": True},
                 {FULL: FISHER_SHRINK, DORA: FISHER_SHRINK, OFT: SHRINK}),
    FISHER_CENTERED: Kind(lambda strength, mode: {**_centered(strength, mode), "fisher_wd": True},
                          {FULL: SHRINK, DORA: SHRINK}),
    SCALED: Kind(lambda strength, mode: {"weight_decay": strength, "scaled_wd": True}, {}),
}  # fmt: skip
