"""Whole runs of hostile configs: they end in words, and write nowhere but into their own folders."""

import json
import random
import time
from pathlib import Path

from benchmarks.torture.ForkedRun import ForkedRun, has_traceback, train_script
from benchmarks.torture.inputs import Tally
from benchmarks.torture.MiniatureRun import MiniatureRun
from benchmarks.torture.mutations import mutate_config

LONGEST = 60.0
# well and refused, by the script's exit status
USED, REFUSED = 0, 1


def hostile_runs(root: Path, base: Path, images: Path, count: int, seed: int) -> Tally:
    """Trains so many configs, each with a few options that have other values.

    Args:
        root: folder of its own, in which everything may be written but beside the runs' own folders.
        base, images: of `MiniatureRun`.
    """
    tally = Tally()
    for number in range(count):
        rng, name = random.Random(f"runs {seed} {number}"), f"run {seed} {number}"
        run = MiniatureRun(root / str(number), base, images, {"epochs": 1})
        data, changed = mutate_config(json.loads(run.config.read_text(encoding="utf-8")), rng)
        run.config.write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")
        before = _files(root, run.root)
        process = ForkedRun(train_script(run.config), run.log)
        status = process.wait(LONGEST)
        words = run.words()
        tally.slowest = max(tally.slowest, time.monotonic() - process.started)
        if status is None:
            process.kill()
            tally.hangs.append(f"{name}: {changed}")
        elif outside := _files(root, run.root) - before:
            tally.broken.append(f"{name}: {changed} wrote {sorted(outside)[:3]}")
        elif status not in (USED, REFUSED) or has_traceback(words):
            tally.broken.append(f"{name}: {changed}: exit status {status}: {words.strip().splitlines()[-1:]}")
        elif status == USED:
            tally.used += 1
        else:
            tally.refused += 1
    return tally


def _files(root: Path, own: Path) -> set[str]:
    """All below a folder and beside it, but those of one run."""
    return {str(path) for path in [*root.rglob("*"), *root.parent.iterdir()] if own not in (path, *path.parents)}
