"""Measures trainings on CPUs whose threads spin or sleep while they wait, in turns, beside whatever else runs."""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts, write_numbers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", type=Path, default=ROOT / "training_presets/Tiny/#tiny LoRA.json")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--seconds", type=int, default=60, help="for which steps are counted, from the first on")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    return parse_counts(parser, arguments, ("rounds", "seconds"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    from benchmarks.measuring import environment
    from benchmarks.training.waiting_threads import measure

    import torch

    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            args.preset.resolve(), Path(folder), args.rounds, args.seconds, lambda text: print(text, flush=True)
        )
    about = environment(torch.device("cpu"), ["torch"])
    write_numbers(args.output, {"script": "scripts/benchmark_waiting_threads.py", **about, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
