"""Tools of benchmarks: where time goes, and on what it was measured."""

import contextlib
import platform
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scaled_optim.scaling import ADAPTER_POWER, OFT_NORM, RANK_POWER, WEIGHT_POWER

import torch

ROOT = Path(__file__).resolve().parents[1]


class Stopwatch:
    """Times functions while it is open; the time of a watched function inside another counts only for the inner one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner = [0.0]
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Times `owner.name` under a label until the stopwatch is closed."""
        original, own = getattr(owner, name), name in vars(owner)
        setattr(owner, name, self._timed(original, label))
        self._restore.callback(setattr, owner, name, original) if own else self._restore.callback(delattr, owner, name)

    def _timed(self, function: Callable, label: str) -> Callable:
        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                whole = time.perf_counter() - start
                self.seconds[label] += whole - self._inner.pop()
                self._inner[-1] += whole

        return timed


def scale_law() -> dict[str, float]:
    """The numbers of scaled steps: a rate means another step where one of them is another."""
    return {
        "oft_norm": OFT_NORM, "adapter_power": ADAPTER_POWER, "weight_power": WEIGHT_POWER,
        "rank_power": round(RANK_POWER, 6),
    }  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def environment(device: torch.device, packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what a measurement was made; with the versions of some packages."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _commit() -> str:
    """The commit that is checked out, marked if files differ from it; "" where there is no git."""
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "modules", "scripts"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit} with changes" if changes else commit


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
