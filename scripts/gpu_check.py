"""Checks this machine's GPU with a slice of everything, in at most eight minutes, and writes a table and JSON.

Runs with each option of memory and speed, stopping and continuing, a plain loop of diffusers and peft beside ours,
every rule of the optimizer, every kind of adapter, every format of frozen weights; models are of random weights, so
that nothing is downloaded. What this machine can't answer is listed with the reason. Exits with 1 if something fails.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MINUTES = 8.0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="of torch; auto: the GPU that there is")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    parser.add_argument("--tables", type=Path, metavar="MD", help="write the tables here")
    parser.add_argument(
        "--only", nargs="+", metavar="CHECK", help="these checks, by their names in the tables of --list"
    )
    parser.add_argument("--list", action="store_true", help="name the checks and end")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works; no results")
    # of the process of one check
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.minutes <= 0:
        parser.error(f"--minutes: found {args.minutes:g}, expected more than 0")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    for name in ("output", "tables"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    # slow to load
    from benchmarks.gpu.measurement import as_json, report, run_checks, write_rows
    from benchmarks.gpu.registry import CHECKS
    from benchmarks.gpu.Row import Row, State
    from benchmarks.measurement_command import show, write_numbers
    from modules.trainer.devices import resolve_device
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.UserError import UserError

    if args.list:
        print("\n".join(f"{name}: {check.title}" for name, check in CHECKS.items()))
        return 0
    wrong = [name for name in args.only or () if name not in CHECKS]
    if wrong:
        print(f"error: --only: found {', '.join(wrong)}, expected some of {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    if args.rows:
        write_rows(args.only[0], args.device, args.quick, args.seconds, args.folder, args.rows)
        return 0
    try:
        device = str(resolve_device(TrainConfig(train_device=args.device)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if device == "cpu":
        print("No GPU was found: what follows are small sizes on the CPU, which show that the checks run.", flush=True)

    def tell(row: Row) -> None:
        print(f"{row.check}, {row.case}: {row.state}, {row.text}", flush=True)

    start = time.monotonic()
    try:
        rows = run_checks(args.only or list(CHECKS), device, args.quick, args.minutes, tell)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print()
    show(args, report(rows))
    write_numbers(args.output, as_json(rows, device, args.quick, time.monotonic() - start))
    return 1 if any(row.state == State.FAILS for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
