"""Runs the checks, each in a process of its own, and tells what came of them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.Bench import Bench
from benchmarks.gpu.registry import CHECKS
from benchmarks.gpu.Row import Row, State
from benchmarks.measuring import ROOT, environment

import torch

PACKAGES = ("torch", "diffusers", "transformers")
MORE_TIME = 4 / 3
"""A check's process is ended so many times after the seconds from which it begins no further case."""
ENOUGH = 0.9
"""Share of a check's seconds with which not to end is a fault."""


def run_checks(
    names: Sequence[str], device: str, quick: bool, minutes: float, tell: Callable[[Row], None]
) -> list[Row]:
    """The rows of all checks, those that were not reached among them.

    Args:
        names: of `CHECKS`.
        device: of torch.
        quick: small sizes.
        minutes: for all of it.
        tell: gets each row.
    """
    end, rows = time.monotonic() + 60 * minutes, []

    def take(found: list[Row]) -> None:
        for row in found:
            tell(row)
        rows.extend(found)

    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left = end - time.monotonic()
            if left < 5:
                take([Row(name, "all of it", State.NOT_MEASURED, "no time was left for it")])
                continue
            # limits are those of a GPU
            own = left if device == "cpu" else min(CHECKS[name].seconds, left)
            take(_in_process(name, device, quick, own / MORE_TIME, Path(folder)))
    return rows


def _in_process(name: str, device: str, quick: bool, seconds: float, folder: Path) -> list[Row]:
    place = folder / f"{name}.rows"
    command = [
        sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--device", device, "--only", name,
        "--rows", str(place), "--folder", str(folder), "--seconds", f"{seconds:g}", *(["--quick"] if quick else []),
    ]  # fmt: skip
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        # a group of its own, so that what it has started ends with it
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=os.name == "posix"
        )
        try:
            status = process.wait(timeout=MORE_TIME * seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            status = None
        except BaseException:
            _end(process)
            raise
    rows = [Row.from_line(line) for line in place.read_text(encoding="utf-8").splitlines()] if place.is_file() else []
    if status is None:
        # with less time than it needs its last case may only have begun too late
        state = State.FAILS if MORE_TIME * seconds >= ENOUGH * CHECKS[name].seconds else State.NOT_MEASURED
        rows.append(Row(name, "the rest", state, f"it did not end within {MORE_TIME * seconds:.0f} s"))
    elif status:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["without a word"]
        rows.append(Row(name, "the rest", State.FAILS, f"its process ended with status {status}: {last[0][:300]}"))
    return rows


def _end(process: subprocess.Popen) -> None:
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def write_rows(name: str, device: str, quick: bool, seconds: float, folder: Path, place: Path) -> None:
    """What the process of one check does: each row is written at once."""
    bench = Bench(torch.device(device), quick, folder, time.monotonic() + seconds)
    with place.open("a", encoding="utf-8") as file:
        for row in CHECKS[name].measure(bench):
            file.write(row.to_line() + "\n")
            file.flush()


def as_json(rows: Sequence[Row], device: str, quick: bool, seconds: float) -> dict[str, Any]:
    """What is written."""
    return {
        "script": "scripts/gpu_check.py", **environment(torch.device(device), PACKAGES), "quick": quick,
        "seconds": round(seconds, 1), "rows": [json.loads(row.to_line()) for row in rows],
    }  # fmt: skip


def report(rows: Sequence[Row]) -> str:
    """Markdown: a sentence that sums it up, what fails, what was not measured, and a table for each check."""
    counts = {state: [row for row in rows if row.state == state] for state in State}
    said = (
        f"{len(counts[State.HOLDS])} hold, {len(counts[State.FAILS])} fail, {len(counts[State.REPORTED])} are figures "
        f"without a bound, {len(counts[State.NOT_MEASURED])} were not measured."
    )
    sections = [f"Of {len(rows)} cases {said}"]
    for state, title in ((State.FAILS, "What fails"), (State.NOT_MEASURED, "What was not measured")):
        if counts[state]:
            lines = [f"- {row.check}, {row.case}: {row.text}" for row in counts[state]]
            sections.append("\n".join([f"## {title}", "", *lines]))
    for name, check in CHECKS.items():
        own = [row for row in rows if row.check == name]
        if own:
            lines = [f"| {row.case} | {row.state} | {row.text.replace('|', '/')} |" for row in own]
            sections.append("\n".join([f"## {check.title}", "", "| case | | |", "|---|---|---|", *lines]))
    return "\n\n".join(sections)
