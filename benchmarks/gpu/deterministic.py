"""Runs with `deterministic`: the same bytes, and what they cost.

A check of its own, as cuBLAS reads its setting once in a process. The plain run comes last, so it has cuBLAS's
deterministic workspace, too: its cost is not in the figure.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.base import config_of
from benchmarks.gpu.Bench import Bench, Found, rows_of
from benchmarks.gpu.Row import Row, State
from benchmarks.gpu.training import tensor_bytes, trained


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    return rows_of("deterministic", bench, {"two runs": lambda: _two_runs(bench)})


def _two_runs(bench: Bench) -> Found:
    runs = [trained(bench, config_of(bench, f"deterministic {name}", {"deterministic": True})) for name in "ab"]
    found = [tensor_bytes(Path(run["report"]["output"])) for run in runs]
    plain = trained(bench, config_of(bench, "deterministic, plain", {}))
    cost = min(run["seconds"] for run in runs) / plain["seconds"]
    figures = {"step_seconds": runs[0]["seconds"], "over_plain": cost}
    if found[0] != found[1]:
        differ = sum(found[0][key] != own for key, own in found[1].items())
        return State.FAILS, f"{differ} of {len(found[1])} tensors of the adapter differ between two runs", figures
    return State.HOLDS, f"the same bytes of the adapter twice, {cost:.2f}× the time of a plain step", figures
