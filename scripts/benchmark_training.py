"""Measures our training step against a plain diffusers + peft loop, in one process, and writes JSON."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts, write_numbers

CONCEPTS = ["training_concepts/tiny_concept/lumo", "training_concepts/tiny_concept/vintage"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/tiny_sd", help="base model, a folder in diffusers' layout")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS, metavar="FOLDER", help="images with captions")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="steps in a block; the loops take turns block by block")
    parser.add_argument("--blocks", type=int, default=24, help="measured blocks of each loop")
    parser.add_argument("--profile-steps", type=int, default=30, help="steps that are timed phase by phase; 0 for none")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--text-encoder", action=argparse.BooleanOptionalAction, default=False, help="trains it, too")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--more-peers", action=argparse.BooleanOptionalAction, default=True,
                        help="also the plain loop with torch's fused AdamW, and one that encodes images and captions "
                        "at each step")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    return parse_counts(parser, arguments, ("batch", "resolution", "rank", "steps", "blocks", "threads"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.training.step_benchmark import BenchmarkSettings, measure, table
    from modules.util.config.errors import ConfigError
    from modules.util.UserError import UserError

    import torch

    torch.set_num_threads(args.threads)
    settings = BenchmarkSettings(
        model=args.model, concepts=tuple(args.concepts), batch=args.batch, resolution=args.resolution,
        rank=args.rank, steps=args.steps, blocks=args.blocks, profile_steps=args.profile_steps,
        text_encoder=args.text_encoder, checkpointing=args.checkpointing, dtype=args.dtype, more_peers=args.more_peers,
    )  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(settings, Path(folder), say=lambda text: print(text, flush=True))
        write_numbers(args.output, result)
    except (ConfigError, UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(result))
    for name, seconds in result["seconds_per_step"].items():
        print(f"{name}: {seconds['median'] * 1e3:.1f} ms per step ({seconds['min'] * 1e3:.1f} to "
              f"{seconds['max'] * 1e3:.1f})")  # fmt: skip
    for clock, ratios in (("", result["ratios"]), (", processor time", result["cpu_ratios"])):
        for name, ratio in ratios.items():
            print(f"{name}{clock}: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    print(f"largest difference of predictions, same adapters: {result['largest_difference_of_predictions']:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
