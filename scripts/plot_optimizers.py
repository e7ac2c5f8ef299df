"""Draws what benchmark_optimizers.py measured: how fast a step is beside adv_optm's and torch's fused AdamW's."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.optimizers.plot import draw


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, metavar="JSON", help="written by benchmark_optimizers.py --json")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="write the picture here")
    parser.add_argument("--all", action="store_true", help="a bar for each case, not only for each optimizer")
    args = parser.parse_args(arguments)
    try:
        result = json.loads(args.result.read_text(encoding="utf-8"))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        draw(result, args.output, args.all)
    except (OSError, ValueError) as error:
        print(f"error: {args.result}: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(
            f"error: {args.result}: {error} is missing; expected what benchmark_optimizers.py writes", file=sys.stderr
        )
        return 1
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
