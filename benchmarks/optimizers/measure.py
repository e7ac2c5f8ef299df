"""Times one step of our optimizer, of adv_optm's and of torch's in turns, and counts the bytes of their state.

Where adv_optm has no such rule, the straightforward optimizers of `per_pair` stand in its place, column and key.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.optimizers import peers
from benchmarks.optimizers.cases import Case
from benchmarks.optimizers.parameter_set import ParameterSet
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.rules.registry import RULES

import torch
from torch import nn

OURS, PEER, TORCH = "ours", "adv_optm", "torch_fused"
# ours again with `compile`, which needs a C++ compiler on a CPU
COMPILED = "ours_compiled"
# of DESIGN's table: the peer's time over ours, our time over torch's without features, our bytes over the peer's
GOALS = {"cpu": 3.0, "cuda": 20.0, "plain": 1.3, "bytes": 1.0}


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        rounds: timed steps of each optimizer.
        warm_up: steps of each before; two are needed for the first steps of ADOPT, three for allocators to settle.
        case_seconds: no new round starts after so long, but three there are.
        compiled: measures ours with `compile`, too.
    """

    rounds: int = 15
    warm_up: int = 3
    case_seconds: float = 120.0
    compiled: bool = False


def state_bytes(state: Any) -> int:
    """Bytes of all memory that tensors in a `state_dict()` are views of, each counted once."""
    storages: dict[tuple[torch.device, int], int] = {}
    waiting = [state]
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[item.device, storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
    return sum(storages.values())


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and the quartiles beside it."""
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    ).tolist()  # fmt: skip
    return {"median": middle, "q1": low, "q3": high}


def measure_case(case: Case, parameter_set: ParameterSet, device: torch.device, settings: Settings) -> dict[str, Any]:
    """One row: seconds of every round, medians, the peer's options or why there is none, and bytes of state.

    Ratios are taken within each round, where all have met the same weather, and their median counts.

    Args:
        parameter_set: of the case's dtype, on the device.
    """
    builders, peer, reason = _builders(case, settings.compiled)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    held: dict[str, int] = {}
    for name, build in builders.items():
        parameters = parameter_set.parameters(RULES[case.rule].orthonormal_up)
        before = _allocated(device)
        try:
            optimizers[name] = build(parameters)
            for _ in range(settings.warm_up):
                _timed(optimizers[name], parameter_set, device)
        except Exception as error:  # whatever a peer fails with is a finding, and no reason to lose the other figures
            if name != PEER:
                raise
            optimizers.pop(name, None)
            peer, reason = None, f"{type(error).__name__}: {error}"
        held[name] = _allocated(device) - before
    seconds, peaks = _rounds(optimizers, parameter_set, device, settings)
    contestants = {
        name: {
            "seconds": quartiles(seconds[name]),
            "rounds": seconds[name],
            "state_bytes": state_bytes(optimizer.state_dict()),
            **({"held_bytes": held[name], "peak_bytes": peaks[name]} if device.type == "cuda" else {}),
        }
        for name, optimizer in optimizers.items()
    }
    return {
        **asdict(case),
        "lr": case.lr,
        "peer": peer,
        "no_peer": reason,
        "contestants": {name: contestants.get(name) for name in (OURS, COMPILED, PEER, TORCH)},
        "ratios": _ratios(seconds, contestants),
    }


def _builders(case: Case, compiled: bool) -> tuple[dict[str, Callable], dict[str, Any] | None, str | None]:
    builders: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        OURS: lambda parameters: BatchedOptimizer(parameters, case.rule, case.lr, **case.options),
        TORCH: lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
    }
    if compiled:
        builders[COMPILED] = lambda parameters: BatchedOptimizer(
            parameters, case.rule, case.lr, compile=True, **case.options
        )
    try:
        spelling = peers.spelled(case.rule, case.options, getattr(torch, case.dtype), case.lr)
    except peers.NoPeer as error:
        return builders, None, str(error)
    builders[PEER] = lambda parameters: peers.build(spelling, parameters)
    return builders, asdict(spelling), None


def _rounds(
    optimizers: Mapping[str, torch.optim.Optimizer],
    parameter_set: ParameterSet,
    device: torch.device,
    settings: Settings,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each optimizer's steps, one a round, and on a GPU the most temporary memory that a step took."""
    names = list(optimizers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    gc.collect()
    start = time.perf_counter()
    for k in range(settings.rounds):
        if k >= 3 and time.perf_counter() - start > settings.case_seconds:
            break
        # nobody is always behind the same other one
        for name in names[k % len(names) :] + names[: k % len(names)]:
            before = _allocated(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[name].append(_timed(optimizers[name], parameter_set, device))
            if device.type == "cuda":
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device) - before)
    return seconds, peaks


def _timed(optimizer: torch.optim.Optimizer, parameter_set: ParameterSet, device: torch.device) -> float:
    """Seconds of one step, until all of it is done; filling in the gradients does not count."""
    parameter_set.refill()
    _finish(device)
    start = time.perf_counter()
    optimizer.step()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _ratios(
    seconds: Mapping[str, list[float]], contestants: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float] | float | None]:
    def times(above: str, below: str) -> dict[str, float]:
        return quartiles([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])

    ratios: dict[str, dict[str, float] | float | None] = {f"{OURS}/{TORCH}": times(OURS, TORCH)}
    ratios[f"{PEER}/{COMPILED}"] = times(PEER, COMPILED) if {PEER, COMPILED} <= seconds.keys() else None
    if PEER not in seconds:
        return ratios | dict.fromkeys((f"{PEER}/{OURS}", f"{PEER}/{TORCH}", "state_bytes"))
    return ratios | {
        f"{PEER}/{OURS}": times(PEER, OURS),
        f"{PEER}/{TORCH}": times(PEER, TORCH),
        "state_bytes": contestants[OURS]["state_bytes"] / contestants[PEER]["state_bytes"],
    }


def misses(row: Mapping[str, Any], device: torch.device) -> list[str]:
    """Which of the goals a row does not reach, in words."""
    ratios, found = row["ratios"], []
    faster, more = ratios[f"{PEER}/{OURS}"], ratios["state_bytes"]
    if faster and faster["median"] < GOALS[device.type]:
        found.append(f"{faster['median']:.2f}x as fast as adv_optm, goal {GOALS[device.type]:g}x")
    plain = ratios[f"{OURS}/{TORCH}"]["median"]
    if row["name"] == "ADAMW_ADV plain" and plain > GOALS["plain"]:
        found.append(f"{plain:.2f}x torch's time, goal {GOALS['plain']:g}x")
    if more and more > GOALS["bytes"]:
        found.append(f"{more:.3f}x adv_optm's bytes, goal {GOALS['bytes']:g}x")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as a markdown table."""
    lines = [
        "| case | ours, ms | ours/torch fused | adv_optm/ours | adv_optm/compiled | state, MB | bytes ours/adv_optm |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, ratios = row["contestants"][OURS], row["ratios"]
        faster, compiled, more = ratios[f"{PEER}/{OURS}"], ratios[f"{PEER}/{COMPILED}"], ratios["state_bytes"]
        cells = [
            row["name"],
            f"{ours['seconds']['median'] * 1e3:.1f}",
            f"{ratios[f'{OURS}/{TORCH}']['median']:.2f}",
            f"{faster['median']:.1f}" if faster else "–",
            f"{compiled['median']:.1f}" if compiled else "–",
            f"{ours['state_bytes'] / 1e6:.1f}",
            f"{more:.3f}" if more else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
