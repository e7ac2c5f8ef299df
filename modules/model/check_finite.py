"""Whether weights that were read can be used at all."""

from modules.util.UserError import UserError

import torch
from torch import nn


def check_finite(component: str, module: nn.Module, source: str) -> None:
    """Raises UserError if a weight is missing, NaN or infinite: training would only spread it."""
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise UserError(f"The base model {source} is broken: it lacks {component}.{name}. Download it again.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"The base model {source} is broken: {component}.{name} holds NaN or infinite values. "
                "Download it again."
            )
