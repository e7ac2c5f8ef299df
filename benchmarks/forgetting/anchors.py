"""What the storage of the start costs and how exact it is, read from a trained optimizer's state."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaled_optim.anchors import ANCHORS

import torch
from torch import Tensor, nn

SLOT = "anchor"


@dataclass(frozen=True)
class AnchorMeasures:
    """Of all parameters that are pulled to their start.

    Attributes:
        bytes: of the stored starts.
        values: how many numbers are stored.
        decode_error: ‖decoded p₀ − p₀‖ over ‖p₀‖.
        pull_error: ‖pull − (p − p₀)‖ over ‖p − p₀‖; what of the pull is wrong, the zone without a pull included.
        left_range: how many values are decoded wrongly, as the store itself estimates it.
    """

    bytes: int
    values: int
    decode_error: float
    pull_error: float
    left_range: int


@torch.no_grad()
def measure_anchors(
    optimizer: torch.optim.Optimizer, starts: Mapping[nn.Parameter, Tensor], mode: str
) -> AnchorMeasures | None:
    """Reads all stored starts; None if there are none.

    Args:
        optimizer: of our engine, after its steps.
        starts: parameter -> its value before the first step.
        mode: a key of `ANCHORS`, the one that the optimizer was made with.
    """
    anchor, size, values, left = ANCHORS[mode], 0, 0, 0
    decoded, pulled, norm, distance = 0.0, 0.0, 0.0, 0.0
    for parameter, start in starts.items():
        stored = optimizer.state[parameter].get("slots", {}).get(SLOT)
        if stored is None:
            continue
        store = {name: tensor[None] for name, tensor in stored.items()}
        p, p0 = as_stack(parameter), as_stack(start)
        size += sum(tensor.nbytes for tensor in stored.values())
        values += p.numel()
        decoded += _square(anchor.decode(store, p) - p0)
        pulled += _square(anchor.pull(store, p) - (p - p0))
        norm, distance = norm + _square(p0), distance + _square(p - p0)
        left += int(anchor.left_range(store, p).sum())
    if not values:
        return None
    return AnchorMeasures(size, values, _share(decoded, norm), _share(pulled, distance), left)


def as_stack(x: Tensor) -> Tensor:
    """A parameter as the engine sees it, `[1, rows, cols]`: a vector is one row, a kernel `[out, in·kh·kw]`."""
    return (x.flatten(1) if x.dim() > 1 else x[None])[None].float()


def relative_distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """‖W − W₀‖ over ‖W₀‖ of all (W − W₀, W₀) together."""
    return _share(sum(_square(change) for change, _ in pairs), sum(_square(start) for _, start in pairs))


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())


def _share(square: float, whole: float) -> float:
    return math.sqrt(square / whole) if whole else 0.0
