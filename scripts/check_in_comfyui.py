"""Opens workflows of ours in a real ComfyUI and runs them with adapters of ours, on the CPU, and writes what it found.

check_in_comfyui.py FOLDER --python PYTHON

FOLDER is a checkout of ComfyUI that runs with PYTHON, which needs the package selenium, too. A Chromium or Chrome and
its driver must be there. Models, adapters and pictures go into a folder of their own (about 2.5 GB), not into that of
ComfyUI. The base has the size of SD 1.5 and random weights.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.exit_status import exit_status


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a checkout of ComfyUI")
    parser.add_argument("--python", type=Path, required=True, help="that of its environment")
    parser.add_argument(
        "--work", type=Path, default=Path("workspace/comfyui"), help="for models, adapters and pictures"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/comfyui.json"), help="what was found")
    args = parser.parse_args(arguments)
    if not (args.folder / "main.py").is_file():
        parser.error(f"{args.folder} has no main.py, so it is no checkout of ComfyUI")
    return args


def run(args: argparse.Namespace) -> None:
    # torch takes seconds to load; a wrong command line should not wait for it
    from benchmarks.comfyui.check import Comfy, check, faults
    from modules.util.atomic_file import write_json
    from modules.util.UserError import UserError

    found = check(Comfy(args.folder, args.python, args.work.resolve()), lambda text: print(text, flush=True))
    write_json(args.output, found)
    print(json.dumps(found["families"], indent=1))
    print(f"written: {args.output}")
    if wrong := faults(found):
        raise UserError("\n".join(["not as it should be:", *wrong]))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
