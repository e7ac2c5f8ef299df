"""A run that is stopped and continued against one that is not: the same adapter."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.base import config_of
from benchmarks.gpu.Bench import Bench, Found, rows_of
from benchmarks.gpu.Row import NotMeasured, Row, State
from benchmarks.gpu.training import tensor_bytes, trained

from safetensors.torch import load_file

STOP_AFTER = 4
# of the adapter's own size; a GPU adds in an order that is not always the same
BOUND = 1e-2


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    return rows_of("resume", bench, {"stopped and continued": lambda: _resumed(bench)})


def _resumed(bench: Bench) -> Found:
    whole = trained(bench, config_of(bench, "whole", {}))
    parts = config_of(bench, "parts", {})
    trained(bench, parts, stop_after=STOP_AFTER)
    parts.continue_last_backup = True
    try:
        rest = trained(bench, parts)
    except NotMeasured as error:
        return State.FAILS, f"stopped after step {STOP_AFTER}, and can't be continued: {error}", {}
    files = [Path(run["report"]["output"]) for run in (whole, rest)]
    if len(rest["losses"]) + STOP_AFTER != len(whole["losses"]):
        return State.FAILS, f"the second part has {len(rest['losses'])} steps", {}
    if tensor_bytes(files[0]) == tensor_bytes(files[1]):
        return State.HOLDS, f"stopped after step {STOP_AFTER} and continued: the same bytes", {"apart": 0.0}
    here, there = (load_file(file) for file in files)
    size = sum(own.double().square().sum() for own in here.values()).sqrt()
    apart = float(sum((there[key].double() - own.double()).square().sum() for key, own in here.items()).sqrt() / size)
    text = f"stopped after step {STOP_AFTER} and continued: not the same bytes, {apart:.1e} apart"
    return (State.HOLDS if bench.is_cuda and apart <= BOUND else State.FAILS), text, {"apart": apart}
