"""Start values of the two factors of a LoRA."""

import math

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
