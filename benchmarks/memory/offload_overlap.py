"""How near a step with offloading comes to the slower of computing and copying, on a link that is slow on purpose."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measuring import environment
from benchmarks.memory.SlowLink import CPU, SlowLink
from modules.model.ActivationOffload import ActivationOffload
from modules.model.DeviceLink import DeviceLink
from modules.model.LayerOffload import LayerOffload, module_bytes

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, BLOCKS, WARM_UP = 128, 6, 2
WEIGHTS, ACTIVATIONS = WHAT = ("weights", "activations")
# seconds that a block computes in the forward, and again twice in the backward; seconds that its copy takes
CASES = {"computing is slower": (0.024, 0.012), "copying is slower": (0.012, 0.030), "both are alike": (0.016, 0.024)}


class SlowBlock(nn.Module):
    """A frozen linear layer with a trained factor, which takes a time of its own in forward and backward.

    Args:
        seconds: of the forward, and of the backward; the layer's own products come on top.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False), seconds
        self.factor = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(_Delayed.apply(x, self.seconds)) * self.factor


class SlowModel(nn.Module):
    """Blocks that are checkpointed one by one."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(SlowBlock(seconds) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class _Delayed(torch.autograd.Function):
    """The identity, late."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


def overlap(what: str, compute: float, copy: float, overlaps: bool = True, repeats: int = 3) -> dict[str, float]:
    """Median seconds of a step beside what it computes and copies.

    Args:
        what: of `WHAT`, that waits elsewhere.
        compute: seconds of a block's forward.
        copy: seconds of a block's copy, weights or activation.
        overlaps: False: as without `async_offloading`.
        repeats: measured steps, after those in which the order is learned.

    Returns:
        `step`; `bound`, the slower of computing and copying, in forward and backward for themselves; `sum` of both.
    """
    link = SlowLink(4 * WIDTH * WIDTH / copy, overlaps)
    model = SlowModel(compute)
    hang_in(model, what, link)
    try:
        for _ in range(WARM_UP):
            _step(model)
        link.fetching = link.sending = 0.0
        step = statistics.median(_step(model) for _ in range(repeats))
    finally:
        link.close()
    fetching, sending = link.fetching / repeats, link.sending / repeats
    alone = statistics.median(_step(SlowModel(compute)) for _ in range(repeats))
    # a checkpointed block computes once in the forward, and twice as much in the backward
    forward, backward = alone / 3, 2 * alone / 3
    bound = max(alone, fetching) if what == WEIGHTS else max(forward, sending) + max(backward, fetching)
    return {"step": step, "bound": bound, "sum": alone + fetching + sending}


def hang_in(model: SlowModel, what: str, link: DeviceLink) -> LayerOffload | ActivationOffload:
    """Lets the blocks' weights or inputs wait beyond the link."""
    assert module_bytes(model.blocks[0].layer) == 4 * WIDTH * WIDTH
    if what == WEIGHTS:
        return LayerOffload([block.layer for block in model.blocks], link)
    return ActivationOffload(model, link)


def measure_overlap(say: Callable[[str], None]) -> dict[str, Any]:
    """Every case with and without overlapping, as ratios to `bound`."""
    rows = []
    for what in WHAT:
        for name, (compute, copy) in CASES.items():
            row = {"what": what, "case": name, "compute": compute, "copy": copy}
            for key, overlaps in (("one after the other", False), ("overlapping", True)):
                found = overlap(what, compute, copy, overlaps, repeats=5)
                row[key] = {**found, "ratio": found["step"] / found["bound"]}
            say(f"{what}, {name}: {row['one after the other']['ratio']:.2f} -> {row['overlapping']['ratio']:.2f}")
            rows.append(row)
    return {"environment": environment(CPU, ["torch"]), "blocks": BLOCKS, "rows": rows}


def _step(model: SlowModel) -> float:
    x = torch.ones(WIDTH, WIDTH, requires_grad=True)
    start = time.perf_counter()
    model(x).sum().backward()
    return time.perf_counter() - start
