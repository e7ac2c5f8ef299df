"""Which learning rate is best for each size of an adapter? Trains the tiny base again and again, and draws the answer.

--question oft     OFT over block sizes, for each way of scaling its weights
--question ranks   LoRA over ranks, with Stiefel-LoRA and with AdamW
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts

PRESET = ROOT / "training_presets" / "Tiny" / "#tiny LoRA.json"
QUESTIONS = {"oft": "benchmarks.training.oft_sweep", "ranks": "benchmarks.training.rank_sweep"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", choices=list(QUESTIONS), required=True, help="what is swept")
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--rates", type=int, default=8, help="learning rates for each size, each twice the one before")
    parser.add_argument(
        "--middle", type=float, help="in the middle of the rates; for oft, of a step's output deviation"
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="block sizes or ranks; 4 to 64")
    parser.add_argument("--layers", default="attentions", help="layer_filter of all runs")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, required=True, metavar="PATH", help="rows; those it has are not run again")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write the picture here")
    return parse_counts(parser, arguments, ("steps", "rates", "threads"))


# every draw counts alike, and a constant rate after a short warm-up says most about the rate
CHANGES = (
    "layer_filter_preset=custom", "loss_weight_fn=CONSTANT", "learning_rate_scheduler=CONSTANT",
    "learning_rate_warmup_steps=10", "cache_dir=workspace-cache/sweep",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    for name in ("json", "plot"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    os.chdir(ROOT)
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.measuring import environment
    from benchmarks.training.size_sweep import draw, measure, summary, table
    from benchmarks.training.sweep import Sweep
    from modules.util.atomic_file import write_json
    from modules.util.config.load import load_train_config
    from modules.util.UserError import UserError

    import torch

    torch.set_num_threads(args.threads)
    question = importlib.import_module(QUESTIONS[args.question])
    args.middle = args.middle or question.MIDDLE
    sizes = args.sizes or question.SIZES

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    settings = {name: getattr(args, name) for name in ("steps", "rates", "middle", "layers")}
    result = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    if result and result["settings"] != settings:
        print(f"error: {args.json} was made with {result['settings']}; name another file", file=sys.stderr)
        return 1
    rows = result.setdefault("rows", [])
    result |= {
        "script": "scripts/sweep_rates.py", "question": args.question,
        **environment(torch.device("cpu"), ["torch", "diffusers"]), "settings": settings,
    }  # fmt: skip
    changes = [f"layer_filter={args.layers}", *CHANGES]

    def found(row: dict) -> None:
        rows.append(row)
        print(f"{row['form']} {row['size']} {row['rate']:.3g}: {row['training']:.5f} {row['validation']:.5f}",
              flush=True)  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, result)

    try:
        sweep = Sweep(load_train_config(PRESET, changes, warn=warn), args.steps, lambda text: None)
        result["untrained"] = sweep.untrained
        measure(sweep, question.forms(sizes, args.rates, args.middle), sizes, list(rows), found)
        result["summary"] = summary(rows)
        write_json(args.json, result)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows, question.SIZE_NAME, question.COLUMNS))
    if args.plot:
        draw(rows, args.plot, question.SIZE_NAME, question.MEANINGS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
