"""How long a backup stops training: written at once, and written in a thread."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import environment, spread
from modules.trainer.backup import Backup
from modules.trainer.BackupWriter import BackupWriter, held_bytes
from modules.trainer.events import TrainEvents
from modules.trainer.TrainProgress import TrainProgress

import torch

CPU = torch.device("cpu")
# a LoRA of rank 64 of a large model has as many, with two moments for each
TENSORS, ROWS, COLUMNS = 400, 64, 1024
STEP_WIDTH, PRODUCTS = 256, 60


def measure_pause(tensors: int = TENSORS, repeats: int = 5) -> dict[str, Any]:
    """Seconds in which training stands still for a backup, and how much slower steps are while one is written.

    Args:
        tensors: of the backup, each with two of the optimizer.
        repeats: backups of each kind, which take turns; one more of each before them is left out.
    """
    own = backup_of(tensors)
    pauses: dict[str, list[float]] = {"at once": [], "in a thread": []}
    alone, beside = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = BackupWriter(Path(folder), 1, TrainEvents([]))
        for _ in range(repeats + 1):
            pauses["at once"].append(_seconds(lambda: writer.write(own, at_once=True)))
            alone += [_seconds(_step) for _ in range(10)]
            pauses["in a thread"].append(_seconds(lambda: writer.write(own)))
            while writer._writing is not None:
                beside.append(_seconds(_step))
                writer.poll()
        writer.close()
    found = {name: spread(values[1:]) for name, values in pauses.items()}
    return {
        "environment": environment(CPU, ["torch"]),
        "bytes": held_bytes([dict(own.tensors), own.optimizer]),
        "pause": found,
        "ratio": found["in a thread"]["median"] / found["at once"]["median"],
        "step alone": spread(alone),
        "step beside a backup": spread(beside),
    }


def backup_of(tensors: int) -> Backup:
    """A backup of so many tensors of a quarter of a megabyte, and twice as many of the optimizer."""
    shape = ROWS, COLUMNS
    weights = {f"unet.{index}.weight": torch.randn(shape) for index in range(tensors)}
    state = {index: {"exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)} for index in range(tensors)}
    optimizer = {"state": state, "param_groups": [{"lr": 1e-4, "params": list(state)}]}
    return Backup(weights, optimizer, {"scaler": {}}, TrainProgress().to_dict(), {}, "run")


def _step() -> None:
    x = torch.full((STEP_WIDTH, STEP_WIDTH), 1 / STEP_WIDTH)
    for _ in range(PRODUCTS):
        x = x @ x


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
