"""Runs named checks, prints a line on each, and keeps them as rows of a table."""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import scaled_onetrainer.startup

import torch

from upstream import enter

Check = tuple[str, Callable[[Path], str]]


def main(description: str | None, checks: Callable[[], Sequence[Check]]) -> int:
    """The exit code of a script that runs checks in a checkout.

    Args:
        checks: gives name and function of each, once the checkout can be imported from. A function gets a folder of its
            own, returns what it found, and raises where that is not what it should be.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onetrainer", type=Path, required=True, metavar="DIR", help="a checkout of OneTrainer")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for what the runs write")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs the checks whose name has it")
    parser.add_argument("--table", type=Path, metavar="FILE", help="adds the results to this file")
    args = parser.parse_args()
    work, table = args.work.resolve(), args.table and args.table.resolve()
    torch.set_num_threads(2)
    scaled_onetrainer.startup.start()
    enter(args.onetrainer.resolve())
    chosen = [(name, check) for name, check in checks() if args.only.lower() in name.lower()]
    rows = [_run(name, check, work) for name, check in chosen]
    if table:
        before = json.loads(table.read_text()) if table.is_file() else []
        table.write_text(json.dumps([*before, *rows], indent=1, ensure_ascii=False) + "\n")
    failed = [row for row in rows if not row["passed"]]
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not rows else 0


def _run(name: str, check: Callable[[Path], str], work: Path) -> dict[str, object]:
    begin = time.monotonic()
    try:
        result, passed = check(work / "".join(c if c.isalnum() else "_" for c in name)), True
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        result, passed = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})", False
    print(f"{'ok    ' if passed else 'FAILED'} {name}: {result} ({time.monotonic() - begin:.0f} s)", flush=True)
    return {"check": name, "passed": passed, "result": result}
