from collections.abc import Sequence

from modules.util.config.errors import Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn


def check_fused(config: TrainConfig) -> str | None:
    """What a run with `fused_back_pass` should know before it starts, None if there is nothing to say.

    Raises:
        UserError: for options that need the whole gradient at once.
    """
    if config.gradient_accumulation_steps > 1:
        raise UserError(
            f"optimizer.fused_back_pass: it frees each gradient at once, so gradients can't be added up; found "
            f"gradient_accumulation_steps {config.gradient_accumulation_steps}. Set that to 1, or this to false.",
            Remedy.of({"gradient_accumulation_steps": 1}),
            Remedy.of({"optimizer.fused_back_pass": False}),
        )
    if config.train_dtype == DataType.FLOAT_16:
        raise UserError(
            "optimizer.fused_back_pass: with train_dtype FLOAT_16 a step must be skipped where any gradient "
            "overflows, which is known too late. Use BFLOAT_16, or set this to false.",
            Remedy.of({"train_dtype": "BFLOAT_16"}),
            Remedy.of({"optimizer.fused_back_pass": False}),
        )
    if config.clip_grad_norm is not None:
        return (
            f"optimizer.fused_back_pass: the norm of the whole gradient is never known, so clip_grad_norm "
            f"{config.clip_grad_norm:g} limits each parameter's own gradient."
        )
    return None


class FusedBackward:
    """Steps every parameter from its gradient's hook and frees the gradient, so that only one is there at a time.

    Args:
        optimizer: has `step_parameter`.
        parameters: all that it trains.
        limit: largest norm of one parameter's gradient; None: any.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], limit: float | None
    ) -> None:
        self.optimizer, self.limit = optimizer, limit
        self._norms: list[Tensor] = []
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            # the loss does not depend on it: a rotation of the last layer of SDXL's first text encoder
            return
        with torch.no_grad():
            norm = torch.linalg.vector_norm(parameter.grad.float())
            self._norms.append(norm)
            if self.limit is not None:
                parameter.grad.mul_((self.limit / (norm + 1e-6)).clamp(max=1))
        self.optimizer.step_parameter(parameter)
        parameter.grad = None

    def take_norm(self) -> Tensor:
        """Norm of the whole gradient since the last call, before clipping, on the device."""
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
