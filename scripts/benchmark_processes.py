"""Counts what several processes of a run send each other in a step, beside the formula, and times steps."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measurement_command import parse_counts, write_numbers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--steps", type=int, default=12, help="of each run; every other one counts bytes")
    parser.add_argument("--width", type=int, default=64, help="channels of the miniature's first level, of 16 each")
    parser.add_argument("--table", action="store_true", help="only print memory and traffic of families by formula")
    parser.add_argument("--worker", type=Path, metavar="FOLDER", help="be one of the processes; torchrun starts them")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    return parse_counts(parser, arguments, ("steps", "width"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    # counts only before torch is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.training.process_traffic import measure, table, work

    if args.table:
        print(table())
    elif args.worker:
        work(args.worker, args.steps)
    else:
        result = measure(args.processes, args.steps, args.width, say=lambda text: print(text, flush=True))
        write_numbers(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
