"""Measures how long a run takes to its first step with an empty and with a complete cache, and writes JSON."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measurement_command import parse_counts, write_numbers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="images of the run with a model of 1 GB")
    parser.add_argument("--many-images", type=int, default=10_000, help="images of the run with a miniature")
    parser.add_argument("--epochs", type=int, default=100, help="of the run with a miniature")
    parser.add_argument("--one-start", type=Path, metavar="FOLDER", help="only start the run of FOLDER and print times")
    parser.add_argument("--backups", action="store_true", help="measure the memory of a resumed run's backup instead")
    parser.add_argument(
        "--plans", action="store_true", help="measure the pause for plans with several resolutions instead"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    return parse_counts(parser, arguments, ("images", "many_images", "epochs"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    # counts only before torch is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.training.start_benchmark import measure, one_start

    if args.one_start:
        print(json.dumps(one_start(args.one_start)))
        return 0
    if args.plans:
        from benchmarks.training.plan_pause import measure_plans

        result = measure_plans(args.many_images, args.epochs)
        print(json.dumps(result["cases"], indent=1))
        write_numbers(args.output, result)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if args.backups:
            from benchmarks.training.backup_memory import measure_backups

            result = measure_backups(Path(folder))
            print(json.dumps(result, indent=1))
        else:
            result = measure(
                Path(folder), args.images, args.many_images, args.epochs, say=lambda text: print(text, flush=True)
            )
    write_numbers(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
