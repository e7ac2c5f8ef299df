"""What the command lines of long measurements share. Loads nothing slow: torch counts its threads when it is loaded."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def add_usual_arguments(parser: argparse.ArgumentParser, *, quick: str, plots: str) -> None:
    """Output, slice, jobs, minutes, and what is reported.

    Args:
        quick, plots: help of these two.
    """
    parser.add_argument("--output", type=Path, required=True, metavar="JSONL", help="trainings; what it has is kept")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time, one thread each")
    parser.add_argument("--minutes", type=float, help="begin no training after so many")
    parser.add_argument(
        "--only-report", action="store_true", help="train nothing; tables and pictures of what is there"
    )
    parser.add_argument("--tables", type=Path, metavar="MD", help="write the tables here")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help=plots)


def parse_usual(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments; exits with 2 if there are no jobs."""
    return parse_counts(parser, arguments, ("jobs",))


def parse_counts(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, names: Sequence[str]
) -> argparse.Namespace:
    """The parsed arguments; exits with 2 if one of these numbers is given and less than 1."""
    args = parser.parse_args(arguments)
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    return args


def write_numbers(path: Path | None, result: Any) -> None:
    """Writes a measurement as JSON, in a folder that need not be there, and says so; None: nothing is written."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")


def run_command(
    parse: Callable[[list[str] | None], argparse.Namespace],
    measure: Callable[[argparse.Namespace], int],
    arguments: list[str] | None,
) -> int:
    """Parses and measures from the repository's folder; returns the exit status, 1 after an error that was told."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    args = parse(arguments)
    for name in ("output", "tables", "plots"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    os.chdir(ROOT)
    from modules.util.UserError import UserError

    try:
        return measure(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def deadline(args: argparse.Namespace) -> float | None:
    """`time.monotonic()` from which no training begins."""
    return None if args.minutes is None else time.monotonic() + 60 * args.minutes


def show(args: argparse.Namespace, text: str) -> None:
    """Prints the tables, and writes them where they are wanted."""
    from modules.util.atomic_file import write_bytes

    print(text)
    if args.tables:
        args.tables.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(args.tables, f"{text}\n".encode())
