import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from modules.modelSaver.effective_rank import effective_rank
from modules.module.factored_svd import singular_values
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TracePoint:
    """After one step.

    Attributes:
        step: number of the step, from 1.
        down, up: root mean square of what the step added to all down factors A and to all up factors B.
        down_change, up_change: how much of the step of B·A that was: the Frobenius norms of B·ΔA and of ΔB·A over all
            layers, with A and B before the step. They do not change if A is made larger and B smaller to match.
        up_rank: effective rank of B, mean over the layers.
        product_rank: effective rank of B·A, likewise.
    """

    step: int
    down: float
    up: float
    down_change: float
    up_change: float
    up_rank: float
    product_rank: float


class FactorTrace:
    """How far each step moves the two factors of LoRAs, and how many of their ranks they use, at some steps of a run.

    Args:
        parameters: trained tensors with `ParameterInfo`; those that are no factor of a pair are left aside.
        steps: of the whole run.
        points: how many steps to look at, spread evenly; the first and the last are among them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], steps: int, points: int = 25) -> None:
        infos = {info.name: (info, p) for p in parameters if (info := get_parameter_info(p)) is not None}
        self.pairs = [
            (parameter, infos[info.pair][1])
            for info, parameter in infos.values()
            if info.role == ParameterRole.LORA_DOWN and info.pair in infos
        ]
        count = min(points, steps)
        self.looks = {round(k * (steps - 1) / max(1, count - 1)) for k in range(count)}
        self.points: list[TracePoint] = []

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Holds step number `index`, from 0."""
        if index not in self.looks or not self.pairs:
            yield
            return
        before = [matrices(pair) for pair in self.pairs]
        yield
        after = [matrices(pair) for pair in self.pairs]
        if not all(bool(torch.isfinite(factor).all()) for pair in after for factor in pair):
            return  # the run has gone astray and ends here
        downs, ups = ([new[side] - old[side] for new, old in zip(after, before, strict=True)] for side in (0, 1))
        down_changes = [product_norm(old[1], step) for old, step in zip(before, downs, strict=True)]
        up_changes = [product_norm(step, old[0]) for old, step in zip(before, ups, strict=True)]
        self.points.append(
            TracePoint(
                step=index + 1,
                down=root_mean_square(downs),
                up=root_mean_square(ups),
                down_change=math.hypot(*down_changes),
                up_change=math.hypot(*up_changes),
                up_rank=fmean(effective_rank(torch.linalg.svdvals(up)) for _, up in after),
                product_rank=fmean(effective_rank(singular_values(down, up)) for down, up in after),
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(point) for point in self.points]


def matrices(pair: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """down `[r, i]` and up `[o, r]` as they are now, float64."""
    down, up = (factor.detach().flatten(1).to(torch.float64, copy=True) for factor in pair)
    return down, up


def product_norm(up: Tensor, down: Tensor) -> float:
    """‖up·down‖ (Frobenius), without ever forming the product: tr(upᵀup·down·downᵀ)."""
    return math.sqrt(max(0.0, float(((up.t() @ up) * (down @ down.t())).sum())))


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Over all numbers of all tensors."""
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors)
    return (squares / sum(tensor.numel() for tensor in tensors)) ** 0.5
