"""Runs a check in this repository over each run that behaviour.py wrote down."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path


def main(description: str | None, title: str, check: Callable[[Path], str], needs: str = "step.safetensors") -> int:
    """The exit code of a script that checks every such run.

    Args:
        title: of the check.
        check: gets the folder of a run, returns what it found, and raises where that is not what it should be.
        needs: the file that a run must have left; others are no business of the check.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --work folder of behaviour.py")
    parser.add_argument("--table", type=Path, metavar="FILE", help="adds the results to this file")
    args = parser.parse_args()
    rows = []
    for path in sorted(args.folder.glob("*/step.json")):
        if not (path.parent / needs).is_file():
            continue
        name = f"{title}: {json.loads(path.read_text(encoding='utf-8'))['case']}"
        try:
            result, passed = check(path.parent), True
        except Exception as error:
            result, passed = f"{type(error).__name__}: {error}", False
        print(f"{'ok    ' if passed else 'FAILED'} {name}: {result}")
        rows.append({"check": name, "passed": passed, "result": result})
    if args.table:
        before = json.loads(args.table.read_text(encoding="utf-8")) if args.table.is_file() else []
        text = json.dumps([*before, *rows], indent=1, ensure_ascii=False)
        args.table.write_text(f"{text}\n", encoding="utf-8")
    return 0 if rows and all(row["passed"] for row in rows) else 1
