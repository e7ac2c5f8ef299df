"""Measures how well the tiny base model follows prompts, and with --adapter also what it has learnt and kept."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measurement_command import write_numbers
from benchmarks.tinyBase import sample
from modules.util.UserError import UserError

import torch


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/tiny_sd"), help="a directory in diffusers' layout")
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FILE",
        help="a LoRA: base skills are measured without and with it, and so is the concept (lumo, vintage)",
    )
    parser.add_argument("--prompts", type=int, default=240, help="number of ordinary scenes")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance scale")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16, help="pictures at once; each keeps its own noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    parser.add_argument(
        "--grid",
        type=Path,
        metavar="PNG",
        help="write the pictures here; with --adapter the concept before and after too, as NAME_concept.png",
    )
    parser.add_argument("--grid-count", type=int, default=48, help="pictures in the grid, the first ones; 0 for all")
    args = parser.parse_args(arguments)
    for name in ("prompts", "steps", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def measure(args: argparse.Namespace) -> dict:
    """Samples, prints the tables, writes the grids; returns what goes into the JSON."""
    settings = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed, "batch": args.batch}
    if args.adapter is not None and not args.adapter.is_file():
        raise UserError(f"{args.adapter}: no such adapter file; name a .safetensors file with --adapter")
    pipeline = sample.load_pipeline(args.model, args.device)
    result: dict = {"model": args.model.as_posix(), "prompts": args.prompts, **settings}
    shown = args.grid_count or args.prompts
    scenes = sample.score_scenes(pipeline, args.prompts, label="scenes", **settings)
    result["base"] = sample.to_json(scenes)
    if args.adapter is None:
        print(sample.table(f"{args.model}: right of {len(scenes)} scenes", sample.rates(scenes)))
        if args.grid:
            save(sample.grid(scenes[:shown]), args.grid)
        return result

    before = sample.score_concept(pipeline, label="concept before", **settings)
    sample.load_adapter(pipeline, args.adapter)
    kept = sample.score_scenes(pipeline, args.prompts, label="scenes with adapter", **settings)
    after = sample.score_concept(pipeline, label="concept after", **settings)
    result["adapter"] = args.adapter.as_posix()
    result["base_with_adapter"] = sample.to_json(kept)
    print(sample.table(f"{args.adapter}: right of {len(kept)} scenes", sample.rates(kept), sample.rates(scenes)))
    for name, old, new in zip(("lumo", "vintage"), before, after, strict=True):
        result[name] = {"before": sample.to_json(old), "after": sample.to_json(new)}
        print(sample.table(f"{name}: right of {len(new)} unseen combinations", sample.rates(new), sample.rates(old)))
    if args.grid:
        save(sample.grid(kept[:shown]), args.grid)
        # Pairs lumos and vintage in one sheet; only presence frames a picture, colours are in the table.
        pairs = [
            (old, new, key)
            for olds, news, key in zip(before, after, ("lumo", "style"), strict=True)
            for old, new in zip(olds, news, strict=True)
        ]
        news = [sample.replace(new, right={"present": new.right[key]}) for _, new, key in pairs]
        save(
            sample.grid(news, [old for old, _, _ in pairs], columns=5),
            args.grid.with_name(f"{args.grid.stem}_concept{args.grid.suffix}"),
        )
    return result


def save(image, file: Path) -> None:
    """Writes a picture and makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    print(f"written: {file}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args, start = parse(arguments), time.perf_counter()
    try:
        result = measure(args)
        result["seconds"] = round(time.perf_counter() - start, 1)
        write_numbers(args.output, result)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{result['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
