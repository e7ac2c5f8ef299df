"""Trains with the engine's kernels in Triton's interpreter and without them; prints what differs, a JSON line a case.

It is a program of its own, as the interpreter is chosen before Triton is imported.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

from scaled_optim.batched_optimizer import BatchedOptimizer  # noqa: E402
from scaled_optim.kernels.Runner import Runner  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

# Two stacks of two, odd sides, every kind of unit, two blocks, and last a matrix too large for its Gram matrix.
SHAPES = [
    ("LORA_DOWN", (3, 70)), ("LORA_UP", (40, 3)), ("LORA_DOWN", (3, 70)), ("LORA_UP", (40, 3)), ("OFT", (5, 28)),
    ("VECTOR", (9,)), ("HIDDEN", (6, 7, 3, 3)), ("INPUT", (30, 50)), ("OUTPUT", (65, 67)),
]  # fmt: skip
STEPS = 3


class CountingRunner(Runner):
    """Trusts every kernel, unless it is to be tried, and counts launches by name."""

    def __init__(self, tried: bool, spoiled: bool) -> None:
        super().__init__(("cpu",))
        self.tried, self.spoiled = tried, spoiled
        self.counts: dict[str, int] = {}

    def trusted(self, kind: Any, check: Any) -> bool:
        return super().trusted(kind, check) if self.tried else True

    def launch(self, name: str, grid: Any, arguments: dict[str, Any], *rest: Any) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        super().launch(name, grid, arguments, *rest)


def trained(case: dict[str, Any], kernels: Any) -> tuple[list[nn.Parameter], BatchedOptimizer]:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    parameters = []
    # the large one takes a way of its own with scaled steps only
    several = case.get("shapes") or len(SHAPES) - (not case["options"].get("scaled_optm"))
    for index, (role, shape) in enumerate(SHAPES[:several]):
        parameters.append(nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
        pair = {"LORA_DOWN": f"LORA_UP{index + 1}", "LORA_UP": f"LORA_DOWN{index - 1}"}.get(role)
        parameters[-1].parameter_info = SimpleNamespace(role=role, name=f"{role}{index}", pair=pair)
    rate = 1.0 if case["rule"] == "PRODIGY_ADV" else 0.05
    optimizer = BatchedOptimizer(parameters, case["rule"], rate, kernels=kernels, **case["options"])
    optimizer.watch = case.get("watch", False)
    for _ in range(STEPS):
        for parameter in parameters:
            parameter.grad = (parameter.detach().float() + torch.randn(parameter.shape, generator=generator)).to(dtype)
        optimizer.step()
    return parameters, optimizer


def leaves(optimizer: BatchedOptimizer) -> list[Tensor]:
    entries = optimizer.state_dict()["state"].values()
    return [x for entry in entries for store in entry["slots"].values() for x in store.values() if x.numel()]


def differing(found: list[Tensor], expected: list[Tensor], tolerance: float) -> float:
    """The share of numbers that are further apart than a part of the largest of their tensor."""
    beyond = total = 0
    for a, b in zip(found, expected, strict=True):
        a, b = a.detach().double(), b.detach().double()
        beyond += int(((a - b).abs() <= tolerance * b.abs().max()).logical_not().sum())
        total += a.numel()
    return beyond / total


def main() -> None:
    for line in sys.stdin:
        case = json.loads(line)
        runner = CountingRunner(case.get("tried", False), case.get("spoiled", False))
        if case.get("spoiled"):
            plain = Runner.launch

            def wrong(self: Runner, name: str, grid: Any, arguments: dict[str, Any], *rest: Any, plain=plain) -> None:
                plain(self, name, grid, {**arguments, **({"rest1": 0.5} if "rest1" in arguments else {})}, *rest)

            Runner.launch = wrong
        parameters, optimizer = trained(case, runner)
        others, reference = trained(case, "never")
        rms = [o.read_statistics() for o in (optimizer, reference)] if case.get("watch") else None
        print(json.dumps({
            "parameters": differing(parameters, others, case["tolerance"]),
            "state": differing(leaves(optimizer), leaves(reference), case["tolerance"]),
            "launches": runner.counts, "notes": optimizer.notes, "rms": rms,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
