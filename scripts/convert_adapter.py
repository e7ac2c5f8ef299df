"""Converts adapter files: format, alpha, rank, kind; extracts, merges, and shows what is inside.

convert_adapter.py IN --info                       what is inside
convert_adapter.py IN OUT --format KOHYA_LORA      another format
convert_adapter.py IN OUT --alpha 16               another alpha, the same change of the model
convert_adapter.py IN OUT --rank 8                 a smaller LoRA; other kinds become a LoRA of that rank
convert_adapter.py IN OUT --to diff --base DIR     the exact change of each layer, for kinds that others can't load
convert_adapter.py IN OUT --merge --base DIR       a base model with the adapter in it, a diffusers folder
convert_adapter.py OUT --extract BASE TUNED        the LoRA between two models
convert_adapter.py IN.json OUT.json --alpha 16     a preset with another alpha that trains the same way
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.config.errors import ConfigError
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.exit_status import exit_status

FORMATS = [
    ModelFormat.KOHYA_LORA,
    ModelFormat.COMFY_LORA,
    ModelFormat.DIFFUSERS_LORA,
    ModelFormat.ORIGINAL_LORA,
    ModelFormat.LEGACY_LORA,
    ModelFormat.INTERNAL,
]
DTYPES = [DataType.FLOAT_32, DataType.FLOAT_16, DataType.BFLOAT_16]
# mode -> the options that do something in it
EFFECTIVE = {
    "a preset": {"alpha", "overwrite"},
    "--info": {"base"},
    "--merge": {"base", "dtype", "neumann", "overwrite"},
    "--extract": {"format", "rank", "alpha", "dtype", "overwrite"},
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="IN and OUT; see above")
    parser.add_argument("--info", action="store_true", help="kind, rank, alpha, norm, effective rank of each layer")
    parser.add_argument("--format", choices=[str(name) for name in FORMATS], help="of OUT")
    parser.add_argument("--base", metavar="MODEL", help="base model: a diffusers folder, a single file or a hub name")
    parser.add_argument("--rank", type=int, metavar="N", help="of OUT; what it loses is printed")
    parser.add_argument("--alpha", type=float, metavar="A", help="of OUT, for the same change of the model")
    parser.add_argument("--to", choices=["lora", "diff"], help="another kind: LoRA of --rank, or the whole change")
    parser.add_argument("--merge", action="store_true", help="writes --base with the adapter in it")
    parser.add_argument("--extract", nargs=2, metavar=("BASE", "TUNED"), help="two models; --rank is 16 if not given")
    parser.add_argument("--dtype", choices=[str(name) for name in DTYPES], help="of OUT; as IN if not given")
    parser.add_argument(
        "--neumann", action="store_true", help="rotations are the Neumann series, as OneTrainer trains them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replaces OUT if it exists")
    args = parser.parse_args(arguments)
    if args.info + args.merge + (args.extract is not None) > 1:
        parser.error("give one of --info, --merge and --extract")
    if is_preset(args.paths[0]) and (args.info or args.merge or args.extract):
        parser.error("--info, --merge and --extract are for adapter files; a preset takes --alpha alone")
    mode = mode_of(args)
    for option, value in vars(args).items():
        chosen = option in ("paths", "info", "merge", "extract") or option in EFFECTIVE.get(mode, {option})
        if not chosen and value not in (None, False):
            parser.error(f"--{option}: has no effect with {mode}. Leave it out.")
    expected = 1 if args.info or args.extract else 2
    if len(args.paths) != expected:
        what = "one path" if expected == 1 else "IN and OUT"
        parser.error(f"found {len(args.paths)} paths, expected {what}")
    if args.rank is not None and args.rank < 1:
        parser.error(f"--rank: found {args.rank}, expected at least 1")
    if args.alpha is not None and not 0 < args.alpha < float("inf"):
        parser.error(f"--alpha: found {args.alpha:g}, expected a number above 0")
    return args


def mode_of(args: argparse.Namespace) -> str:
    """One of `EFFECTIVE`, or "" for a conversion, where every option does something."""
    if is_preset(args.paths[0]):
        return "a preset"
    return next((f"--{mode}" for mode in ("info", "merge", "extract") if getattr(args, mode)), "")


def is_preset(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def run(args: argparse.Namespace) -> None:
    # torch, diffusers and transformers take seconds to load; a wrong command line should not wait for them
    if is_preset(args.paths[0]):
        from modules.tool.rebase_config import rebase_preset

        rebase_preset(*args.paths, alpha=args.alpha, overwrite=args.overwrite, say=say)
        return
    from modules.model.hub import Hub
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.tool import adapter_tool
    from modules.util.config.TrainConfig import TrainConfig

    console = ConsoleProgress()

    def show(stage: str, done: int, total: int) -> None:
        console("progress", {"stage": stage, "done": done, "total": total, "unit": "bytes"})

    wishes = adapter_tool.Wishes(
        format=args.format and ModelFormat(args.format),
        base=args.base,
        rank=args.rank,
        alpha=args.alpha,
        kind=args.to,
        dtype=args.dtype and DataType(args.dtype),
        overwrite=args.overwrite,
        neumann=args.neumann,
        hub=Hub(TrainConfig(), show, say),
    )
    if args.info:
        adapter_tool.show(args.paths[0], wishes, say)
    elif args.extract:
        adapter_tool.extract(*args.extract, args.paths[0], wishes, say)
    elif args.merge:
        adapter_tool.merge(*args.paths, wishes, say)
    else:
        adapter_tool.convert(*args.paths, wishes, say)


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    return exit_status(lambda: run(args), ConfigError)


if __name__ == "__main__":
    sys.exit(main())
