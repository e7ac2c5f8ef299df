"""Compares the speed of this checkout's optimizer engine with another checkout's, on a CPU, and writes JSON."""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status, which is 1 where a case became more than 5 % slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True, metavar="FOLDER", help="the other checkout")
    parser.add_argument("--cases", nargs="+", default=[], metavar="TEXT", help="those with one of these in the name")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--small", action="store_true", help="a few small layers, to try it; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="written here")
    args = parser.parse_args(arguments)
    if not (args.other / "modules").is_dir():
        print(f"error: --other: {args.other} is no checkout of the trainer", file=sys.stderr)
        return 2
    # slow to load
    from benchmarks.measuring import environment
    from benchmarks.optimizers.checkouts import compared

    import torch

    rows = []
    for row in compared(ROOT, args.other.resolve(), args.cases, args.rounds, args.threads, args.small):
        rows.append(row)
        print(f"{row['ratio']:.3f}  {row['name']}", flush=True)
    if args.json:
        about = {"script": "scripts/compare_checkouts.py", **environment(torch.device("cpu"), ["torch"])}
        text = json.dumps({**about, "threads": args.threads, "rounds": args.rounds, "cases": rows}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    return 1 if any(row["ratio"] > 1.05 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
