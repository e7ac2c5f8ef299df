"""How strongly a parameter decays in a step, from the options and from what it is."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.roles import Role
from scaled_optim.scaling import block_size


def decay_rates(options: Mapping[str, Any], role: Role) -> tuple[float, float]:
    """(decay toward zero, decay toward the start) of a role, each per unit of the learning rate.

    Zero is the start of LoRA factors and OFT blocks, so for them the centered rate is plain decay; the plain rate is
    theirs only where no centered one is set. All else takes both.
    """
    plain, centered = options["weight_decay"], options["centered_wd"]
    if role.starts_from_model:
        return (centered or plain), 0.0
    return plain, centered


def decoupled(options: Mapping[str, Any]) -> bool:
    """Whether decay does not depend on the learning rate, only on the schedule."""
    return options["scaled_optm"] or options["scaled_wd"]


def decay_share(
    options: Mapping[str, Any], role: Role, rows: int, cols: int, partner_shape: tuple[int, int] | None
) -> float:
    """What `scaled_wd` multiplies decay with: 1/width, and 2/b for OFT blocks of b; 1 without it.

    The width of a matrix is its inputs, that of a vector or DoRA scale its length. Of both factors of a LoRA it is the
    layer's inputs, which are the down factor's, so that ΔW decays by the same law as a full weight of that layer,
    (1 − wd/width)² a step, whatever the rank and the outputs. An up factor whose partner is not known has its outputs.

    Args:
        partner_shape: `(rows, cols)` of the partner of a LoRA's factor.
    """
    if not options["scaled_wd"]:
        return 1.0
    if role.name == "OFT":
        return 2 / block_size(cols)
    if role.vector:
        return 1 / (rows * cols)
    if role.name == "LORA_UP":
        return 1 / (partner_shape[1] if partner_shape else rows)
    return 1 / cols
