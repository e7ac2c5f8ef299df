"""Runs everything that docs/results.md is made from: coordinates, transfer of learning rates, forgetting, stability.

Within eight hours on two cores; stopped, the same command goes on where it was. --quick runs a slice of each within ten
minutes and writes to workspace/proof_quick.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.proof import STAGES, run_proof


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument("--quick", action="store_true", help="a slice of each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time, one thread each")
    parser.add_argument("--minutes", type=float, help="begin no training after so many")
    parser.add_argument("--numbers", type=Path, metavar="FOLDER", help="docs/benchmarks, or workspace/proof_quick")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="docs/images, or workspace/proof_quick")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs: found {args.jobs}, expected at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    quick = ROOT / "workspace" / "proof_quick"
    numbers = (args.numbers or (quick if args.quick else ROOT / "docs" / "benchmarks")).resolve()
    pictures = (args.pictures or (quick if args.quick else ROOT / "docs" / "images")).resolve()
    stages = [stage for stage in STAGES if stage.name in args.stages]
    failed = run_proof(
        stages, numbers, pictures, quick=args.quick, jobs=args.jobs, minutes=args.minutes,
        tell=lambda text: print(text, flush=True),
    )  # fmt: skip
    for name in failed:
        print(f"error: the stage {name} failed; its own message is above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
