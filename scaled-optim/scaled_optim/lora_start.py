"""Start values of the two factors of a LoRA."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scaled_optim.batching import DOWN, members_of, partners_of
from scaled_optim.features.stiefel import TOLERANCES, make_orthonormal_, orthonormality_error
from scaled_optim.roles import parameter_info

import torch
from torch import Tensor, nn


def draw_start_values(down: Tensor, up: Tensor, init: str, generator: torch.Generator | None = None) -> None:
    """Draws the start values of the factor that does not start at zero, in place. Its partner stays zero.

    - KAIMING: down is uniform in ±1/√fan_in (Kaiming with a = √5), as kohya and OneTrainer draw it.
    - NORMAL: down is normal with variance 1/fan_in. Inputs of unit variance then give every rank unit variance.
    - ORTHONORMAL: up has orthonormal columns, upᵀ·up = 1, with all directions equally likely. Stiefel-LoRA needs this.

    Args:
        down: zeros, `[r, i]` or `[r, i/groups, kh, kw]`.
        up: zeros, `[o, r]` or `[o, r, 1, 1]`; r <= o for ORTHONORMAL.
        init: `KAIMING`, `NORMAL` or `ORTHONORMAL`.
        generator: of random numbers; None: torch's own.
    """
    if init == "KAIMING":
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
    elif init == "NORMAL":
        down.normal_(std=down[0].numel() ** -0.5, generator=generator)
    else:
        gaussian = torch.randn(up.shape[:2], dtype=torch.float64, generator=generator)
        columns, triangle = torch.linalg.qr(gaussian)
        # without the signs the result would depend on the library's convention, and not be uniform
        up.copy_((columns * triangle.diagonal().sign()).view(up.shape))


def make_orthonormal(groups: Sequence[Mapping[str, Any]]) -> None:
    """Gives every LoRA an up factor with orthonormal columns, in place. The product of its factors stays the same.

    The factors of a file usually need this before Stiefel-LoRA can train them. A LoRA without full rank, as one that
    was never trained, stays as it is; the optimizer refuses it.

    Args:
        groups: as for an optimizer; its parameters are described by their `parameter_info`.
    """
    for down, up in partners_of(members_of(groups, parameter_info)).items():
        if down.role != DOWN or up.matrix[0] < up.matrix[1]:
            continue
        if not orthonormality_error(up.parameter) <= TOLERANCES[up.parameter.dtype]:
            make_orthonormal_(down.parameter, up.parameter)
