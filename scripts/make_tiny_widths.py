"""Distils variants of the tiny base with half and twice the channels. Stopped, it goes on where it was."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tinyBase.widths import HELD_OUT_SCENES, WIDTHS, Distillation, make_width
from modules.util.exit_status import exit_status

import torch


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS), help="which to make, in this order"
    )
    steps = ", ".join(f"{width.steps} for {name}" for name, width in WIDTHS.items())
    parser.add_argument("--steps", type=int, help=f"optimizer steps of each (default: {steps})")
    parser.add_argument("--model", type=Path, default=Path("models/tiny_sd"), help="the base, in diffusers' layout")
    parser.add_argument(
        "--output", type=Path, default=Path("workspace/tiny_widths"), help="one folder a width goes here"
    )
    parser.add_argument(
        "--workspace", type=Path, default=Path("workspace/tiny_widths_training"), help="checkpoints and caches"
    )
    parser.add_argument("--scenes", type=int, default=Distillation.scenes, help="drawings that are trained on")
    parser.add_argument("--batch", type=int, default=Distillation.batch)
    parser.add_argument("--held-out", type=int, default=HELD_OUT_SCENES, help="drawings that it is measured on")
    parser.add_argument("--seed", type=int, default=Distillation.seed)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more are slower on such small layers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    for name in ("steps", "scenes", "batch", "held_out", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    return exit_status(lambda: make(args))


def make(args: argparse.Namespace) -> None:
    """Makes each width, and writes and says how good it is."""
    recipe = Distillation(seed=args.seed, scenes=args.scenes, batch=args.batch)
    for name in args.widths:
        width = replace(WIDTHS[name], steps=args.steps or WIDTHS[name].steps)
        output = args.output / name
        quality = make_width(
            name, width, recipe, args.model, args.workspace, output, torch.device(args.device), args.held_out
        )
        output.with_suffix(".json").write_text(json.dumps(asdict(quality), indent=1) + "\n", encoding="utf-8")
        print(
            f"{output}: loss on held-out drawings {quality.loss:.4f} (base {quality.base_loss:.4f}), with min-SNR "
            f"weights {quality.weighted_loss:.4f} ({quality.base_weighted_loss:.4f}), squared distance to the "
            f"base's prediction {quality.distance:.4f}"
        )


if __name__ == "__main__":
    sys.exit(main())
