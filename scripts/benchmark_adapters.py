"""Measures training steps of our adapters against peft's and the textbook's, on blocks of real models."""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each; all take one in each round")
    parser.add_argument("--small", action="store_true", help="one tiny block, to try it; the figures mean nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the adapters, as oft or 'dora peft'")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every number here")
    return parse_counts(parser, arguments, ("threads", "rounds"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.adapters.contest import CASES, GOALS, SMALL, contestants, measure, ratio, table
    from benchmarks.measuring import environment

    import torch

    torch.set_num_threads(args.threads)
    known = contestants(SMALL[0])
    for name in args.only:
        if name not in known:
            print(f"error: --only: found {name!r}, expected one of {', '.join(known)}", file=sys.stderr)
            return 1
    result = {
        "script": "scripts/benchmark_adapters.py",
        **environment(torch.device("cpu"), ["torch", "peft", "diffusers"]),
        "goals": {f"{above} / {below}": most for (above, below), most in GOALS.items()},
        "cases": [],
    }
    for case in SMALL if args.small else CASES:
        row = measure(case, args.rounds, tuple(args.only))
        row["ratios"] = {f"{above} / {below}": ratio(row, above, below) for above, below in GOALS}
        result["cases"].append(row)
        print(f"{table(row)}\n", flush=True)
        for name, found in row["ratios"].items():
            if found is not None:
                print(f"{name}: {found:.2f}, goal at most {result['goals'][name]:g}")
        print(flush=True)
        if args.json:  # after each case: what is measured stays
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
