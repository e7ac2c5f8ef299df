"""What makes signed steps calmer: freeze-on-flip and projected adaptivity."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import unit_sum
from scaled_optim.codecs import CODECS, pack_bits, unpack_bits
from scaled_optim.features.moments import FIRST
from scaled_optim.roles import WHOLE
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

SIGNS, SIZE = "last_sign", "mean_size"
# Averaging factor of the running mean of a direction's size: a hundred steps.
SIZE_BETA = 0.99


def sign_slots(options: Mapping[str, Any], others: list[Slot]) -> list[Slot]:
    slots = []
    if options["freeze_on_flip"] and not _signs_of_moment(others):
        slots.append(Slot(SIGNS, create=lambda p, keys: {"bits": pack_bits(torch.zeros_like(p))}))
    if options["l1_adaptive"] and options["scaled_optm"]:
        slots.append(Slot(SIZE, create=lambda p, keys: {"mean": p.new_zeros(p.shape[0], 1, 1)}))
    return slots


def _signs_of_moment(slots: list[Slot]) -> bool:
    """A factored momentum holds its signs already."""
    return any(slot.name == FIRST and slot.codec is CODECS["factored"] for slot in slots)


def sign_numbers(step: int) -> dict[str, float]:
    return {"size_share": 1 - SIZE_BETA**step}


def last_signs(s: StackStep) -> Tensor | None:
    """Signs of the last direction for `freeze_on_flip`, to be read before the momentum changes; None: no freeze."""
    if not s.options["freeze_on_flip"] or s.first:
        return None
    return unpack_bits(s.store(SIGNS)["bits"], s.g) if s.has(SIGNS) else torch.sign(s.read(FIRST))


def sign_direction(s: StackStep, x: Tensor, last: Tensor | None) -> Tensor:
    """sign(x), or zero where it is not the sign of the last step. One bit per component is remembered."""
    direction = torch.sign(x)
    if s.has(SIGNS):
        s.store(SIGNS)["bits"].copy_(pack_bits(direction))
    return direction if last is None else direction.mul_(last.mul_(direction).gt_(0))


def projected_size(s: StackStep, x: Tensor) -> Tensor:
    """`l1_adaptive`: the mean size of x `[b, 1, 1]`, the dual norm of the sign's geometry.

    With scaled steps its ratio to its own bias-corrected running mean, so that the learning rate keeps its unit.
    """
    size = unit_sum(x.abs(), WHOLE) / (x.shape[1] * x.shape[2])
    if not s.has(SIZE):
        return size
    mean = s.store(SIZE)["mean"]
    mean.lerp_(size, 1 - SIZE_BETA)
    return size / (mean / s.n["size_share"] + torch.finfo(size.dtype).tiny)
