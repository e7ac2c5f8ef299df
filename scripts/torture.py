"""Tries to break runs: kills, full disks, set clocks, damaged files, two runs at once, hostile inputs. Counts the rest.

Runs are processes of a miniature model on the CPU, in a folder that is removed at the end. Needs a system that forks
(Linux, macOS). Nothing outside of that folder is written but what --json and --table name.

Exit status: 0 nothing was lost and nothing broke; 1 something was, and it is named.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

PARTS = ("kills", "disks", "flips", "pairs", "inputs", "runs")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all if not given")
    parser.add_argument("--kills", type=int, default=11, help="of each of the ten cases")
    parser.add_argument("--flips", type=int, default=500, help="damaged backups, and a fiftieth of it caches")
    parser.add_argument("--inputs", type=int, default=5000, help="hostile inputs of each kind")
    parser.add_argument("--runs", type=int, default=200, help="whole runs of hostile configs")
    parser.add_argument("--quick", action="store_true", help="a slice of everything, in a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the counts here; other parts in it are kept")
    parser.add_argument("--table", type=Path, metavar="MD", help="write the table here")
    args = parser.parse_args(arguments)
    if args.quick:
        args.kills, args.flips, args.inputs, args.runs = 4, 25, 10, 2
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    if not hasattr(os, "fork"):
        print("error: this system does not fork; use Linux or macOS.", file=sys.stderr)
        return 1
    from benchmarks.torture.ForkedRun import load_libraries
    from benchmarks.torture.report import is_clean, table
    from modules.util.atomic_file import write_bytes, write_json

    load_libraries()
    result = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.is_file() else {}

    def keep(part: str, counts: dict[str, Any]) -> None:
        result[part] = counts
        if args.json:
            write_json(args.json, result)

    with tempfile.TemporaryDirectory(prefix="torture ") as folder:
        torture(args, Path(folder), keep)
    text = table(result)
    print(text)
    if args.table:
        write_bytes(args.table, (text + "\n").encode())
    return 0 if is_clean(result) else 1


def torture(args: argparse.Namespace, folder: Path, keep: Callable[[str, dict[str, Any]], None]) -> None:
    """Tries the parts; `keep` gets the counts of each as soon as it is done."""
    from benchmarks.torture import report
    from benchmarks.torture.disks import BACKUP, FULL, PLACES, TROUBLES, disk_trial
    from benchmarks.torture.flips import flip_backups, flip_cache
    from benchmarks.torture.hostile_runs import hostile_runs
    from benchmarks.torture.inputs import Inputs, campaign
    from benchmarks.torture.kills import CASES, kill_chain
    from benchmarks.torture.miniature import draw_images, save_pipeline
    from benchmarks.torture.pairs import one_cache, one_workspace

    base, images = save_pipeline(folder / "base"), folder / "images"
    draw_images(images)
    own = base, images
    if "kills" in args.parts:
        chains = []
        for number, case in enumerate(list(CASES)[1:2] if args.quick else CASES):
            epochs = 4 if args.quick else 10
            chains.append(kill_chain(folder / f"kills {number}", *own, case, args.kills, args.seed, epochs=epochs))
            told(f"{case}: {len(chains[-1].kills)} kills, the same bytes: {chains[-1].same}")
        keep("kills", report.of_kills(chains))
    if "disks" in args.parts:
        pairs = [(place, trouble) for place in PLACES for trouble in TROUBLES]
        pairs = [(BACKUP, FULL)] if args.quick else pairs
        trials = [disk_trial(folder / f"{place} {trouble}", *own, place, trouble) for place, trouble in pairs]
        keep("disks", report.of_disks(trials))
        told(f"disks: {sum(trial.clean for trial in trials)} of {len(trials)} clean")
    if "flips" in args.parts:
        backups = flip_backups(folder / "backups", *own, args.flips, args.seed)
        caches = flip_cache(folder / "caches", *own, max(1, args.flips // 50), args.seed)
        keep("flips", report.of_flips({"backups": backups, "caches": caches}))
        told(
            f"damaged backups noticed: {backups.noticed} of {backups.tried}, caches {caches.noticed} of {caches.tried}"
        )
    if "pairs" in args.parts:
        trials = {"one workspace": one_workspace(folder / "workspace", *own)}
        if not args.quick:
            trials["one cache"] = one_cache(folder / "cache", *own, clear=False)
            trials["one cache, cleared by both"] = one_cache(folder / "cleared", *own, clear=True)
        keep("pairs", report.of_pairs(trials))
        told(f"two at once: {sum(trial.clean for trial in trials.values())} of {len(trials)} clean")
    if "inputs" in args.parts:
        inputs = Inputs(folder / "inputs", base)
        tell_of(keep, "inputs", {kind: campaign(inputs, kind, args.inputs, args.seed) for kind in inputs.kinds})
    if "runs" in args.parts:
        tell_of(keep, "runs", {"runs": hostile_runs(folder / "runs", *own, args.runs, args.seed)})


def tell_of(keep: Callable[[str, dict[str, Any]], None], part: str, tallies: dict[str, Any]) -> None:
    """Keeps and prints what came of hostile inputs."""
    from benchmarks.torture.report import of_inputs

    keep(part, of_inputs(tallies))
    for name, tally in tallies.items():
        told(f"hostile {name}: {tally.tried}, {len(tally.broken)} broken, {len(tally.hangs)} hangs")
        for line in [*tally.broken, *tally.hangs][:20]:
            told(f"  {line}")


def told(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
