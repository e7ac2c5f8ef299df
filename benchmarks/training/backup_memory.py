"""How much memory a resumed run's backup takes: after it was read, at the most, and at the end. Linux alone."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from modules.trainer.backup import Backup, newest_backup, write_backup
from modules.trainer.optimizers import create_optimizer, load_optimizer_state
from modules.trainer.TrainProgress import TrainProgress
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig

import torch

MIB = 1 << 20
SIDE = 1024
"""Of each weight matrix in float32, 4 MiB."""


def measure_backups(
    folder: Path, matrices: int = 25, optimizers: tuple[str, ...] = ("ADAMW", "ADAMW_ADV")
) -> dict[str, dict[str, float]]:
    """Optimizer -> MiB of memory that stands on no file, beyond that of the weights; two moments for each weight.

    Args:
        folder: for the backups, 12 MiB for each matrix and optimizer.
        matrices: of the weights.
        optimizers: by their names in the config.
    """
    found = {}
    # memory that a process has given back to itself would hide what it takes again
    for name in optimizers:
        for work in (_write, _read):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found[name] = pool.submit(work, folder / name, matrices, name).result()
    return found


def _run(matrices: int, name: str) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    weights = {f"unet.{k}": torch.nn.Parameter(torch.full((SIDE, SIDE), 0.01 * k)) for k in range(matrices)}
    groups = [{"params": list(weights.values()), "lr": 1e-3, "name": "unet"}]
    return weights, create_optimizer(TrainOptimizerConfig.from_dict({"optimizer": name}), groups)


def _write(folder: Path, matrices: int, name: str) -> None:
    weights, optimizer = _run(matrices, name)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    tensors = {key: weight.detach() for key, weight in weights.items()}
    progress = TrainProgress(step=1, losses=[0.1]).to_dict()
    write_backup(folder, Backup(tensors, optimizer.state_dict(), {"scaler": {}}, progress, {}, "run"))


@torch.no_grad()
def _read(folder: Path, matrices: int, name: str) -> dict[str, float]:
    weights, optimizer = _run(matrices, name)
    before = _anonymous()
    with _Peak(_anonymous) as peak:
        backup = newest_backup(folder, print)
        held = _anonymous() - before
        for key in list(backup.tensors):
            weights[key].copy_(backup.tensors[key])
        backup.tensors = {}
        load_optimizer_state(optimizer, backup.optimizer)
        backup.optimizer = {}
        end = _anonymous() - before
    return {"after reading": held, "peak": peak.most - before, "at the end": end}


def _anonymous() -> int:
    """MiB of this process's memory that stands on no file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 // MIB


class _Peak:
    """The largest value of a function while it is open, asked every two milliseconds."""

    def __init__(self, value: Callable[[], int]) -> None:
        self._value, self._over = value, threading.Event()
        self.most = value()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most, self._value())
            time.sleep(0.002)
