"""How many steps a training on CPUs makes by how threads of torch wait: a moment awake, asleep, awake."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT
from modules.util.openmp import CHOICES, SHORT

POLICIES = {"a moment": SHORT, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}, "spinning": {"KMP_BLOCKTIME": "200"}}
"""Environments. The first is ours, the last OpenMP's default, which `wait_asleep` leaves alone as something is set."""


def measure(preset: Path, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs a preset in turns under all policies, each time until so many seconds after its first step.

    Args:
        preset: config file.
        folder: of the runs.
        rounds: runs of each.
        seconds: that steps are counted for; a run whose first step does not end within ten times as many is ended, too.
        say: gets lines for people.

    Returns:
        for each policy a list of runs, each the seconds of its steps; and the load of the machine before each run.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in POLICIES}
    loads = []
    for number in range(rounds):
        for name, environment in POLICIES.items():
            loads.append(os.getloadavg()[0])
            steps = _run(preset, folder / f"{name} {number}", environment, seconds)
            found[name].append(steps)
            middle = f"median {statistics.median(steps):.2f} s" if steps else "none has ended"
            say(f"{name}: {len(steps)} steps, {middle}; load before {loads[-1]:.1f}")
    return {"preset": preset.relative_to(ROOT).as_posix(), "seconds": seconds, "loads": loads, **found}


def _run(preset: Path, folder: Path, environment: dict[str, str], seconds: float) -> list[float]:
    folder.mkdir(parents=True)
    changes = {
        "workspace_dir": folder, "cache_dir": folder.parent / "cache",
        "output_model_destination": folder / "a.safetensors",
        "sample_after_unit": "NEVER", "backup_after_unit": "NEVER", "validation": "false", "tensorboard": "false",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config-path", str(preset)]
    command += ["--control", str(folder / "control")]
    command += ["--override", *(f"{key}={value}" for key, value in changes.items())]
    plain = {name: value for name, value in os.environ.items() if name not in {*CHOICES, "OMP_NUM_THREADS"}}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, env={**plain, **environment, "TQDM_DISABLE": "1"}, stdout=log, stderr=log, cwd=ROOT
        )
    begun, first = time.monotonic(), None
    try:
        while process.poll() is None:
            time.sleep(0.5)
            now = time.monotonic()
            if first is None and _steps(folder):
                first = now
            if now - (first or begun) > (seconds if first else 10 * seconds):
                break
    finally:
        process.kill()
        process.wait()
    return _steps(folder)


def _steps(folder: Path) -> list[float]:
    """Seconds of the steps that a run has told."""
    path = folder / "control" / "events.jsonl"
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    events = [json.loads(line) for line in whole.splitlines()]
    return [event["seconds"] for event in events if event["kind"] == "step"]
