"""What a run may show of its steps, gathered on the device and brought to the host only when asked for."""

from modules.optim.StackStep import StackStep

import torch
from torch import Tensor


class RoleStatistics:
    """Sums over the parameters of one role since the last reading."""

    def __init__(self) -> None:
        self.count = 0
        self.squares: Tensor | float = 0.0
        self.beta2_count = 0
        self.beta2: Tensor | float = 0.0

    def add(self, s: StackStep, u: Tensor) -> None:
        self.count += u.numel()
        # float32 is enough for a figure to look at, and a pass in float64 would cost as much as a step
        self.squares = self.squares + (torch.linalg.vector_norm(u) * s.rate).double().square()
        if s.beta2 is not None:
            self.beta2_count += s.beta2.numel()
            self.beta2 = self.beta2 + s.beta2.double().sum()

    def read(self) -> dict[str, float]:
        """`update_rms`, and `beta2` where it moves. This waits for the device."""
        found = {"update_rms": float(torch.as_tensor(self.squares / max(self.count, 1)).sqrt())}
        if self.beta2_count:
            found["beta2"] = float(self.beta2 / self.beta2_count)
        return found
