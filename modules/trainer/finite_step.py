from collections.abc import Sequence
from pathlib import Path

from modules.util.UserError import UserError

import torch

SMALLEST_SCALE = 1e-4
"""Where overflows have brought the scale of fp16 losses below this, they do not come from the scale."""


def check_finite(
    loss: float, norm: float, scaler: torch.amp.GradScaler, names: Sequence[str], step: int, backups: Path
) -> None:
    """Stops a run whose numbers are lost.

    Args:
        loss: of the step.
        norm: of its gradient.
        scaler: of fp16. With it an overflow only makes it skip the step and scale less, unless that never ends.
        names: paths of the step's images.
        step: its number, from 1.
        backups: folder of the run's backups.

    Raises:
        UserError: loss or gradient are not finite.
    """
    finite_loss, finite_norm = abs(loss) < float("inf"), abs(norm) < float("inf")
    # asking for the scale waits for the device
    if finite_loss and (finite_norm or (scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE)):
        return
    what = "loss" if not finite_loss else "gradient"
    raise UserError(
        f"The {what} of step {step} is not finite (batch: {', '.join(names)}). The run stops; backups in {backups} are "
        "untouched. Try a lower learning rate, gradient clipping or BFLOAT_16 instead of FLOAT_16, and look at the "
        "images of that batch."
    )
