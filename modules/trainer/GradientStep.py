from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modules.trainer.finite_step import check_finite
from modules.trainer.FusedBackward import FusedBackward
from modules.trainer.loss import loss_scale
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.UserError import UserError
from modules.util.World import ALONE, World
from scaled_optim.shards import is_shard, local_part

import torch
from torch import Tensor, nn


class GradientStep:
    """From the losses of a step's batches to changed weights, for which the host waits for the device once.

    It waits when everything of the step is queued. So a loss or gradient that is not finite is found after weights
    have changed: the run ends with it, and nothing that is written holds these weights. With `FLOAT_16` the host waits
    before the optimizer's step, which an overflow leaves out.

    Args:
        config: clipping, loss scale, `fused_back_pass`.
        optimizer: of the run.
        parameters: all that it trains.
        device: where they are.
        backups: folder that messages name.
        world: the processes, each of which may have a part of the gradient.

    Attributes:
        scaler: of the loss; does nothing but with `FLOAT_16`.
    """

    def __init__(
        self,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        backups: Path,
        world: World = ALONE,
    ) -> None:
        self.optimizer, self.parameters, self.backups = optimizer, list(parameters), backups
        self.device, self.world = device, world
        self.limit, self.loss_scale = config.clip_grad_norm, loss_scale(config)
        fused = config.optimizer.fused_back_pass
        self.fused = FusedBackward(optimizer, self.parameters, self.limit) if fused else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train_dtype == DataType.FLOAT_16)
        self._read: tuple[float, float] | None = None

    def backward(self, loss: Tensor, step: int, names: Sequence[str], scale: float = 1.0) -> Tensor:
        """Adds one batch's gradients, or steps by them at once; returns the loss, `[]`, without its graph.

        Args:
            loss: the batch's share of the step's loss.
            step: its number, from 1.
            names: files of the batch.
            scale: the loss whose gradients are added is so many times the loss.

        Raises:
            UserError: see `read`.
        """
        with self._blamed(loss.detach(), step, names):
            self.scaler.scale(loss * (self.loss_scale * scale)).backward()
        return loss.detach()

    def apply(self, loss: Tensor, step: int, names: Sequence[str]) -> Tensor:
        """Queues the optimizer's step; returns the loss and the norm of the gradient before clipping, `[2]`.

        Args:
            loss: of the step, `[]`.
            step: its number, from 1.
            names: files of its batches.

        Raises:
            UserError: see `read`.
        """
        numbers = self._numbers(loss, self._norm())
        if not self.scaler.is_enabled():
            # where every parameter had its step, this ends the step as a whole
            with self._blamed(loss, step, names, numbers):
                self.optimizer.step()
        else:
            self._read = self._checked(numbers, step, names)
            if abs(self._read[1]) < float("inf"):
                self.optimizer.step()
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def read(self, numbers: Tensor, step: int, names: Sequence[str]) -> tuple[float, float]:
        """Loss and norm of the gradient as numbers: where the host waits for the device.

        Args:
            numbers: of `apply`.
            step: its number, from 1.
            names: files of its batches.

        Raises:
            UserError: one of them is not finite. With `FLOAT_16` a gradient may be so, unless it never ends.
        """
        read, self._read = self._read, None
        return self._checked(numbers, step, names) if read is None else read

    def _norm(self) -> Tensor:
        """Norm of the whole gradient before clipping. It is clipped here, unless every parameter had its step."""
        if self.fused is not None:
            return self.fused.take_norm()
        self.scaler.unscale_(self.optimizer)
        limit = float("inf") if self.limit is None else self.limit
        if not any(map(is_shard, self.parameters)):
            return nn.utils.clip_grad_norm_(self.parameters, limit)
        parts = [local_part(p.grad) for p in self.parameters if p.grad is not None and is_shard(p)]
        whole = [p.grad for p in self.parameters if p.grad is not None and not is_shard(p)]
        # of what processes hold in parts, the squares of all parts are added up
        squares = self.world.sum(nn.utils.get_total_norm(parts).to(self.device).square())
        norm = (squares + nn.utils.get_total_norm(whole).to(self.device).square()).sqrt()
        torch._foreach_mul_([*parts, *whole], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @staticmethod
    def _numbers(loss: Tensor, norm: Tensor) -> Tensor:
        return torch.stack([loss, norm.to(loss)])

    @contextmanager
    def _blamed(self, loss: Tensor, step: int, names: Sequence[str], numbers: Tensor | None = None) -> Iterator[None]:
        """Tells of numbers that are not finite where they make the block fail: a matrix of NaN has no QR."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError):
            norm = torch.zeros_like(loss) if self.fused is None else self.fused.take_norm()
            self._checked(self._numbers(loss, norm) if numbers is None else numbers, step, names)
            raise

    def _checked(self, numbers: Tensor, step: int, names: Sequence[str]) -> tuple[float, float]:
        loss, norm = numbers.tolist()
        try:
            check_finite(loss, norm, self.scaler, names, step, self.backups)
        except UserError:
            self.optimizer.zero_grad(set_to_none=True)
            raise
        return loss, norm
