"""What a run may show of its steps, gathered on the device and brought to the host only when asked for."""

from collections.abc import Sequence

from scaled_optim.arithmetic import decomposable, wide
from scaled_optim.roles import matrix_shape
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor


class RoleStatistics:
    """Sums over the parameters of one role since the last reading."""

    def __init__(self) -> None:
        self.count = 0
        self.squares: Tensor | float = 0.0
        self.beta2_count = 0
        self.beta2: Tensor | float = 0.0
        self.grams: list[Tensor] = []
        self.orthonormal = False

    def add(self, s: StackStep, u: Tensor, parameters: Sequence[Tensor]) -> None:
        """Notes one step of one stack.

        Args:
            u: its direction, see `advance`.
            parameters: after the step.
        """
        self.count += u.numel()
        # float32 is enough for a figure to look at, and a pass in float64 would cost as much as a step
        self.squares = self.squares + wide(torch.linalg.vector_norm(u) * s.rate).square()
        if s.beta2 is not None:
            self.beta2_count += s.beta2.numel()
            self.beta2 = self.beta2 + wide(s.beta2).sum()
        if s.role.name == "LORA_UP":
            self.orthonormal = s.options.get("orthonormal", False)
            rows, cols = matrix_shape(tuple(parameters[0].shape))
            tall = torch.stack([parameter.reshape(rows, cols) for parameter in parameters]).to(s.dtype)
            self.grams.append(torch.bmm(tall.mT, tall))

    def on_host(self) -> "RoleStatistics":
        """A copy that other processes can read; waits for the device."""
        made = RoleStatistics()
        made.count, made.beta2_count, made.orthonormal = self.count, self.beta2_count, self.orthonormal
        made.squares, made.beta2 = float(self.squares), float(self.beta2)
        made.grams = [gram.cpu() for gram in self.grams]
        return made

    def join(self, other: "RoleStatistics") -> None:
        """Adds what another process has noted."""
        self.count, self.beta2_count = self.count + other.count, self.beta2_count + other.beta2_count
        self.squares, self.beta2 = self.squares + other.squares, self.beta2 + other.beta2
        self.grams, self.orthonormal = self.grams + other.grams, self.orthonormal or other.orthonormal

    def read(self) -> dict[str, float]:
        """`update_rms`; `beta2` where it moves; of the up factors of LoRAs the mean `effective_rank`, and where they
        are kept orthonormal the largest `orthogonality_error` |BᵀB − 1|. This waits for the device.
        """
        found = {"update_rms": float(torch.as_tensor(self.squares / max(self.count, 1)).sqrt())}
        if self.beta2_count:
            found["beta2"] = float(self.beta2 / self.beta2_count)
        if self.grams:
            found["effective_rank"] = float(torch.cat([effective_ranks(gram) for gram in self.grams]).mean())
        if self.grams and self.orthonormal:
            errors = [(gram - torch.eye(gram.shape[1], device=gram.device)).abs().max() for gram in self.grams]
            found["orthogonality_error"] = float(torch.stack(errors).max())
        return found


def effective_ranks(gram: Tensor) -> Tensor:
    """exp of the entropy of σ/Σσ `[b]` of matrices with the Gram matrices `[b, r, r]`; 0 for zeros (Roy 2007).

    NaN where a Gram matrix is not finite.
    """
    finite = gram.isfinite().all((1, 2), keepdim=True)
    values = torch.linalg.eigvalsh(decomposable(torch.where(finite, gram, 0.0))).clamp_(min=0).sqrt_()
    total = values.sum(1, keepdim=True)
    shares = values / total.clamp(min=torch.finfo(values.dtype).tiny)
    ranks = torch.special.entr(shares).sum(1).exp_().mul_(total[:, 0].gt(0))
    return torch.where(finite[:, 0, 0].to(ranks.device), ranks, torch.nan)
