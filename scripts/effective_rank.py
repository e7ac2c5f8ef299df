"""Effective rank of adapters, layer by layer: how many of their ranks they really use.

effective_rank.py A.safetensors                       table of B (the up factor) and of B·A, and the means
effective_rank.py A.safetensors B.safetensors         side by side
effective_rank.py A.safetensors --plot PNG --json JSON

It is exp of the entropy of the normalised singular values: the rank if all directions weigh the same, 1 if one is all.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.exit_status import exit_status
from modules.util.UserError import UserError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER", help="files of any format")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a picture here")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every number here")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    # torch takes seconds to load; a wrong command line should not wait for it
    from modules.modelSaver.AdapterFile import read_adapter
    from modules.modelSaver.effective_rank import rank_table, ranks_of_file

    draw_ranks = None
    if args.plot:
        try:
            from modules.modelSaver.effective_rank_plot import draw_ranks
        except ImportError as error:
            raise UserError(f"--plot: needs matplotlib ({error}). Install it: pip install matplotlib.") from error
    files = [ranks_of_file(read_adapter(path)) for path in args.adapters]
    print(rank_table(files))
    shared = set.intersection(*(set(file.layers) for file in files))
    if not shared:
        print(
            "note: the files have no layer name in common. Bring them to one format: "
            "scripts/convert_adapter.py IN OUT --format KOHYA_LORA."
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"files": [file.to_json() for file in files]}, indent=1, ensure_ascii=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    if draw_ranks:
        draw_ranks(files, args.plot)
        print(f"written: {args.plot}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
