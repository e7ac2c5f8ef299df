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
    """Fills the factor that does not start at zero; both must be zero.

    KAIMING: down uniform in ±1/√fan_in (Kaiming with a = √5), as kohya and OneTrainer do. NORMAL: down ~
    N(0, 1/fan_in), so that inputs of unit variance give every rank unit variance. ORTHONORMAL: upᵀ·up = 1, any
    direction as likely as any other, as Stiefel-LoRA needs it.

    Args:
        down: `[r, i]` or `[r, i/groups, kh, kw]`.
        up: `[o, r]` or `[o, r, 1, 1]`; r <= o for ORTHONORMAL.
        init: `KAIMING`, `NORMAL` or `ORTHONORMAL`.
        generator: None: torch's own.
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
    """Splits every LoRA anew into factors with an orthonormal up, as that of a file is not; its product stays.

    One that has not full rank, such as one that was never trained, is left as it is, for the optimizer to refuse.

    Args:
        groups: as for an optimizer; its parameters are described by their `parameter_info`.
    """
    for down, up in partners_of(members_of(groups, parameter_info)).items():
        if down.role != DOWN or up.matrix[0] < up.matrix[1]:
            continue
        if not orthonormality_error(up.parameter) <= TOLERANCES[up.parameter.dtype]:
            make_orthonormal_(down.parameter, up.parameter)
