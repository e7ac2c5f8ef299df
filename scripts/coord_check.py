"""Coordinate check: how much ONE optimizer step changes each layer's output and the prediction, over sizes and methods.

coord_check.py CONFIG                                    ranks and blocks 4, 16, 64 of LoRA, DoRA, OFT and DoRA-OFT
coord_check.py CONFIG --methods lora full --ranks 4 8 16 32 64
coord_check.py CONFIG --widths "a wider base" other.json     over base models, too
coord_check.py CONFIG --json JSON --plot PNG

CONFIG is a preset or config of a training. Where a step changes as much at every size, a learning rate holds for all.
Nothing is written but what --json and --plot name; the base model is only read.

Exit status: 0 no spread over sizes or widths exceeds --bound; 1 some do; 2 it could not be measured.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.tool.coord_check.methods import BATCH, BLOCKS, BOUND, CHECKED, RANKS, USUAL, WARM
from modules.util.config.errors import ConfigError
from modules.util.UserError import UserError


def number(kind: Callable[[str], Any], least: float, more: bool = False) -> Callable[[str], Any]:
    """Reads a finite number of at least `least`, or more than it."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value > least if more else value >= least) or math.isinf(value):
            what = "a whole number" if kind is int else "a number"
            bound = f"more than {least:g}" if more else f"of at least {least:g}"
            raise argparse.ArgumentTypeError(f"found {text}, expected {what} {bound}")
        return value

    return read


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a preset or config, JSON")
    parser.add_argument("--methods", nargs="+", choices=CHECKED, help=f"{' '.join(USUAL)} if not given")
    parser.add_argument("--ranks", nargs="+", type=number(int, 1), default=RANKS, metavar="N")
    parser.add_argument("--blocks", nargs="+", type=number(int, 2), default=BLOCKS, metavar="N")
    parser.add_argument("--widths", nargs="+", default=[], metavar="CONFIG|BASE",
                        help="further configs (.json), or base models with which CONFIG is measured")  # fmt: skip
    parser.add_argument("--rate", type=number(float, 0, more=True), metavar="RATE", help="instead of learning_rate")
    parser.add_argument("--steps", nargs="+", type=number(int, 0), default=WARM, metavar="N",
                        help="steps before the one that is measured")  # fmt: skip
    parser.add_argument("--batch", type=number(int, 1), default=BATCH, metavar="N", help="images of a batch")
    parser.add_argument("--bound", type=number(float, 1), default=BOUND, metavar="X",
                        help="largest spread (largest over smallest) that counts as flat")  # fmt: skip
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as in scripts/train.py")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every layer's number here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a picture here: change over size")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], metavar="JSON",
                        help="results of earlier checks (their --json) that the picture shows, too")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.beside and not args.plot:
        parser.error("--beside: is for the picture; give --plot, too")
    return args


def run(args: argparse.Namespace) -> int:
    # torch, diffusers and transformers take seconds to load; a wrong command line should not wait for them
    from benchmarks.measuring import environment
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.tool.coord_check.report import read_result, spread_table, table
    from modules.tool.coord_check.tool import CheckWishes, check_coordinates
    from modules.trainer.checks import check_place
    from modules.util.atomic_file import write_json

    from tqdm import tqdm

    for key in ("json", "plot"):
        if getattr(args, key):
            check_place(getattr(args, key), f"--{key}", is_folder=False)
    earlier = [read_result(path) for path in args.beside]
    draw_check = None
    if args.plot:
        try:
            from modules.tool.coord_check.plot import draw_check
        except ImportError as error:
            raise UserError(f"--plot: needs matplotlib ({error}). Install it: pip install matplotlib.") from error
    console = ConsoleProgress()
    wishes = CheckWishes(
        args.config,
        args.override,
        args.methods,
        args.ranks,
        args.blocks,
        args.widths,
        args.rate,
        args.steps,
        args.batch,
    )
    try:
        result = check_coordinates(
            wishes, lambda text: tqdm.write(text, file=sys.stderr), console.steps("steps"), console.download
        )
    finally:
        console.close()
    print("\n".join([result.title, "", table(result.rows), "", spread_table(result.spreads)]))
    beyond = result.beyond(args.bound)
    lines = [f"{len(beyond)} of {len(result.spreads)} spreads are above the bound of {args.bound:g}", *map(str, beyond)]
    print("\n  ".join(["", *lines]) if beyond else f"\nno spread is above the bound of {args.bound:g}")
    settings = {name: getattr(args, name) for name in ("override", "rate", "batch", "bound")}
    numbers = {**environment(result.device, ["torch", "diffusers"]), "settings": settings, **result.to_json()}
    if args.json:
        write_json(args.json, {"script": "scripts/coord_check.py", **numbers})
        print(f"written: {args.json}")
    if draw_check:
        draw_check([numbers, *earlier], args.plot)
        print(f"written: {args.plot}")
    return 1 if beyond else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    try:
        return run(args)
    except (ConfigError, UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
