"""Writes a run as one HTML file that can be sent to somebody: curves, pictures, what it took, and what was set.

run_page.py WORKSPACE              of the newest run there: page.html in it
run_page.py ui_runs/RUN            beside the records of a run of the window
run_page.py FOLDER --output HTML   FOLDER is that of `train.py --control`
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.exit_status import exit_status
from modules.util.UserError import UserError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="FOLDER", help="of the run's records, or its workspace")
    parser.add_argument("--output", type=Path, metavar="HTML", help="page.html in FOLDER if not given")
    parser.add_argument("--overwrite", action="store_true", help="replaces the page if it exists")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    from modules.viewModel.run_page import run_page

    target = args.output or args.run / "page.html"
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} exists. Choose another name, or give --overwrite.")
    text = run_page(args.run)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"written: {target}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
