"""Compares whole runs on the tiny base: ours, a plain loop of diffusers and peft, and a checkout of OneTrainer.

The same config, images and model; each run in a process of its own with one thread, in turns. Measures the time from
start to first step without a cache and with one, the time of a step, and peak memory. Linux and macOS.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts, write_numbers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--onetrainer", type=Path, metavar="DIR", help="a checkout of OneTrainer; without, it is left out"
    )
    parser.add_argument("--python", type=Path, help="of the checkout; DIR/venv/bin/python if it is not given")
    parser.add_argument("--rounds", type=int, default=3, help="of all trainers in turns")
    parser.add_argument("--epochs", type=int, default=5, help="of each run")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    args = parse_counts(parser, arguments, ("rounds", "epochs"))
    if args.onetrainer is not None:
        args.python = args.python or args.onetrainer / "venv" / "bin" / "python"
        for path in (args.onetrainer / "scripts" / "train.py", args.python):
            if not path.is_file():
                parser.error(f"{path} is not there, expected a checkout of OneTrainer with an environment")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    # slow to load
    from benchmarks.trainers.contest import ContestSettings, compare, table

    settings = ContestSettings(rounds=args.rounds, epochs=args.epochs)
    # not resolved: an environment's interpreter is a link to another one
    onetrainer, python = (None if path is None else path.absolute() for path in (args.onetrainer, args.python))
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = compare(settings, Path(folder), onetrainer, python, say=lambda text: print(text, flush=True))
        write_numbers(args.output, result)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
