"""Directions of signs, random ones too, decay in their geometry, freeze-on-flip and projected adaptivity."""

import math
from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import arctangent, unit_norm, unit_sum
from scaled_optim.codecs import CODECS, pack_bits, unpack_bits
from scaled_optim.features.moments import FIRST
from scaled_optim.noise import uniform_bits
from scaled_optim.roles import WHOLE
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

SIGNS, SIZE = "last_sign", "mean_size"
# Averaging factor of the running mean of a direction's size: a hundred steps.
SIZE_BETA = 0.99
# of random numbers, see `StackStep.noise`
SIGN_STREAM, DECAY_STREAM = 102, 103


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


def check_signs(options: Mapping[str, Any]) -> None:
    """ValueError for options that say different things about signs."""
    if options["freeze_on_flip"] and options["stochastic_sign"]:
        raise ValueError("freeze_on_flip: with stochastic_sign a flip may be chance; expected false.")


def signs_of(s: StackStep, x: Tensor, stream: int = SIGN_STREAM) -> Tensor:
    """sign(x) `[b, rows, cols]`, or with `stochastic_sign` a random one; a fresh tensor.

    x is divided by the largest size in each row, then in each column, which leaves v within [−1, 1]; +1 is drawn with
    probability (1 + v)/2, so that the mean is v. Zeros stay zero, and vectors have their own signs.
    """
    if not s.options.get("stochastic_sign") or s.vector:
        return torch.sign(x)
    tiny = torch.finfo(x.dtype).tiny
    v = x / x.abs().amax(2, keepdim=True).clamp_(min=tiny)
    v.div_(v.abs().amax(1, keepdim=True).clamp_(min=tiny))
    # 24 bits, which float32 holds, in [−1, 1)
    noise = uniform_bits(s.noise(stream), s.elements).bitwise_right_shift_(8).to(x.dtype).mul_(2.0**-23)
    return v.add_(noise.view(x.shape)).sign_().mul_(x.ne(0))


def signed_pull(s: StackStep, x: Tensor, doubt: Tensor | None = None) -> Tensor:
    """Geometric decay of signed steps: t = sign(x), of length ‖x‖; with `doubt` t = atan2(sign(x), doubt)."""
    target = signs_of(s, x, DECAY_STREAM)
    size: Tensor | float = math.sqrt(s.elements)
    if doubt is not None:
        target = arctangent(target, doubt)
        size = unit_norm(target, WHOLE).clamp_(min=torch.finfo(x.dtype).tiny)
    return target.mul_(unit_norm(x, WHOLE) / size)


def sign_numbers(step: int) -> dict[str, float]:
    return {"size_share": 1 - SIZE_BETA**step}


def last_signs(s: StackStep) -> Tensor | None:
    """Signs of the last direction for `freeze_on_flip`, to be read before the momentum changes; None: no freeze."""
    if not s.options["freeze_on_flip"] or s.first:
        return None
    return unpack_bits(s.store(SIGNS)["bits"], s.g) if s.has(SIGNS) else torch.sign(s.read(FIRST))


def sign_direction(s: StackStep, x: Tensor, last: Tensor | None) -> Tensor:
    """`signs_of` x, or zero where it is not the sign of the last step. One bit per component is remembered."""
    direction = signs_of(s, x)
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
