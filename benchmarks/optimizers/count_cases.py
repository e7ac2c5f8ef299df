"""Which steps are counted, and what comes of it: rows of launches, bytes and waits beside each case's floor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.optimizers import peers
from benchmarks.optimizers.cases import Case, cases
from benchmarks.optimizers.counting import CountingRunner, Counts, Operations
from benchmarks.optimizers.measure import OURS, PEER
from benchmarks.optimizers.parameter_set import ParameterInfo
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.weight_decay import NAME as ANCHOR
from scaled_optim.rules.registry import RULES

import torch
from torch import nn

EAGER = "ours_eager"
# state and caches are made before, and ADOPT's first step is none
WARM_UP = 1
# times the floor, by what a case is called; the first that fits
GOALS = (("all on", 2.5), ("bf16_sr", 2.0), ("int8_sr", 2.0), ("factored", 2.0), ("plain", 1.3))
USUAL_GOAL = 1.6
LAUNCHES = {"plain": 150, "all on": 600}
WAITS = {"LORA_RITE": 1}
NAMES = (
    "scaled_optm", "fisher_wd", "cautious_wd", "kourkoutas_beta", "orthogonal_gradient flattened", "use_atan2",
    "bf16_sr", "int8_sr", "factored", "all on", "all on, bf16_sr", "all on, int8_sr", "all on, factored",
    "bf16 parameters", "bf16 parameters, bf16_sr", "bf16 parameters, all on",
)  # fmt: skip
# of `counted_cases`, those that are counted with a large decay, too
PAYING = ("fisher_wd", "cautious_wd", "centered_wd full", "centered_wd int8", "all on")

Shapes = Sequence[tuple[ParameterInfo, tuple[int, int]]]


def counted_cases() -> list[Case]:
    """Every rule plain, and the features of AdamW.

    Centered decay is counted with the same shapes as hidden matrices: to LoRA factors it is plain decay.
    """
    known = {case.name: case for case in cases()}
    rows = [known[f"{name} plain"] for name in RULES]
    rows += [known[f"ADAMW_ADV {name}"] for name in NAMES]
    for mode in ("full", "int8"):
        rows.append(Case(f"ADAMW_ADV centered_wd {mode}", "ADAMW_ADV", {"centered_wd": 0.01, "centered_wd_mode": mode}))
    # decay so large that every step pays it; else it is paid in portions, in one of many steps
    for name in PAYING:
        rows.append(_large(next(row for row in rows if row.name == f"ADAMW_ADV {name}")))
    rows += [known[f"{name} all on"] for name in RULES if name != "ADAMW_ADV"]
    return rows + [Case("LORA_RITE scaled_optm", "LORA_RITE", {"scaled_optm": True})]


def _large(case: Case) -> Case:
    """The same with a decay of 1 times the learning rate."""
    options = {name: 1.0 if name in ("weight_decay", "centered_wd") else value for name, value in case.options.items()}
    return replace(case, name=f"{case.name}, paid in every step", options=options)


class FakeParameters:
    """Parameters with shapes and no numbers, which all optimizers share, as no step changes what they are.

    Args:
        shapes: see `lora_shapes`.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._known: dict[tuple[str, bool], list[nn.Parameter]] = {}

    def of(self, case: Case) -> list[nn.Parameter]:
        """Those of a case: of its dtype, and hidden matrices where decay is centered."""
        key = case.dtype, "centered_wd" in case.options
        if key not in self._known:
            self._known[key] = []
            for info, shape in self.shapes:
                parameter = nn.Parameter(torch.empty(shape, dtype=getattr(torch, case.dtype), device="cuda"))
                parameter.parameter_info = replace(info, role="HIDDEN") if key[1] else info
                parameter.grad = torch.empty_like(parameter)
                self._known[key].append(parameter)
        return self._known[key]


def count_case(case: Case, parameters: FakeParameters, operations: Operations, peer: bool = True) -> dict[str, Any]:
    """One row: the counts of a step of ours, of ours without our own kernels, and of adv_optm's, and the floor.

    Args:
        operations: of `fake_gpu`, which is open.
        peer: whether to count adv_optm's, which takes most of the time.
    """
    row: dict[str, Any] = {**asdict(case), "no_peer": None}
    for name, kernels in ((OURS, CountingRunner()), (EAGER, "never")):
        optimizer = BatchedOptimizer(parameters.of(case), case.rule, case.lr, kernels=kernels, **case.options)
        row[name] = _counted(optimizer, operations, kernels if name == OURS else None)
        row["floor_bytes"] = floor_bytes(optimizer)
    row[PEER] = None
    if peer:
        try:
            row[PEER] = _counted(_peer(case, parameters.of(case)), operations, None)
        except Exception as error:  # whatever a peer fails with is a finding, and no reason to lose the others
            row["no_peer"] = str(error) if isinstance(error, peers.NoPeer) else f"{type(error).__name__}: {error}"
    return row


def floor_bytes(optimizer: BatchedOptimizer) -> int:
    """What any step has to move: parameters and state are read and written once, gradients and anchors read once."""
    total = 0
    for batch in optimizer._batches:
        total += sum(p.numel() * p.itemsize * 2 + p.grad.numel() * p.grad.itemsize for p in batch.parameters)
        for name, store in batch.stores.items():
            total += sum(x.numel() * x.itemsize for x in store.values()) * (1 if name == ANCHOR else 2)
    return total


def _peer(case: Case, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    spelling = peers.spelled(case.rule, case.options, getattr(torch, case.dtype), case.lr)
    if "centered_wd" in case.options:
        mode = case.options["centered_wd_mode"]
        more = {"centered_wd": case.options["centered_wd"], "centered_wd_mode": mode, "weight_decay": 0.0}
        spelling = replace(spelling, arguments={**spelling.arguments, **more})
    return peers.build(spelling, parameters)


def _counted(optimizer: torch.optim.Optimizer, operations: Operations, runner: CountingRunner | None) -> dict[str, Any]:
    for _ in range(WARM_UP):
        optimizer.step()
    counts = Counts()
    operations.counts = counts
    if runner is not None:
        runner.counts = counts
    optimizer.step()
    operations.counts = None
    if runner is not None:
        runner.counts = None
    return {"launches": counts.launches, "bytes": counts.bytes, "waits": counts.waits, "waited": dict(counts.waited),
            "operations": counts.operations}  # fmt: skip


def misses(row: Mapping[str, Any]) -> list[str]:
    """Which of the goals a row does not reach, in words."""
    ours, found = row[OURS], []
    name = row["name"]
    goal = next((limit for text, limit in GOALS if text in name), USUAL_GOAL)
    times = ours["bytes"] / row["floor_bytes"]
    if times > goal:
        found.append(f"{times:.2f} times the floor, goal {goal:g}")
    if row[PEER] and ours["bytes"] > row[PEER]["bytes"]:
        found.append(f"{ours['bytes'] / row[PEER]['bytes']:.2f} times adv_optm's bytes")
    most = next((limit for text, limit in LAUNCHES.items() if text in name), None)
    if most is not None and ours["launches"] > most:
        found.append(f"{ours['launches']} launches, goal {most}")
    if ours["waits"] > WAITS.get(row["rule"], 0):
        found.append(f"{ours['waits']} waits, goal {WAITS.get(row['rule'], 0)}")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as a markdown table; of ours first with kernels, then by single operations."""
    lines = [
        "| case | launches | GB | times the floor | waits | single operations: launches | GB "
        "| waits | adv_optm: launches | GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours, eager, peer = row[OURS], row[EAGER], row[PEER]
        cells = [
            row["name"],
            f"{ours['launches']:,}",
            f"{ours['bytes'] / 1e9:.2f}",
            f"{ours['bytes'] / row['floor_bytes']:.2f}",
            str(ours["waits"]),
            f"{eager['launches']:,}" if eager else "–",
            f"{eager['bytes'] / 1e9:.2f}" if eager else "–",
            str(eager["waits"]) if eager else "–",
            f"{peer['launches']:,}" if peer else "–",
            f"{peer['bytes'] / 1e9:.2f}" if peer else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
