"""Compares optimizers for LoRA on real tasks: AdamW, LoRA+, and those that see a LoRA's two factors as one object.

--task sentence   a pretrained sentence model learns to tell from which library a sentence of documentation comes
--task tiny       the tiny diffusion model learns its demo concept

Equal steps for all. Each optimizer tries every learning rate of one grid and then runs three fresh seeds at its best.
Every run is written at once; a call with the same --json goes on where the last one stopped. With --small everything
is tiny, to see that it works; its numbers say nothing.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts

PRESET = ROOT / "training_presets" / "Tiny" / "#tiny LoRA.json"
PACKAGES = ("torch", "transformers", "diffusers", "scipy", "numpy", "matplotlib", "pydantic", "peft")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["sentence", "tiny"], default="sentence", help="what is learned")
    parser.add_argument(
        "--optimizers", nargs="+", default=[], metavar="NAME", help="contestants, or optimizers by name"
    )
    parser.add_argument("--rates", type=float, nargs="+", metavar="LR", help="the grid; 9 from 1e-4 to 1")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of the runs that count, above 0; 1 2 3")
    parser.add_argument("--steps", type=int, help="of each training; 200")
    parser.add_argument("--rank", type=int, help="of every LoRA; 16")
    parser.add_argument("--layers", help="parts of the names of layers that get an adapter; all, for tiny attentions")
    parser.add_argument("--small", action="store_true", help="a slice that takes seconds")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, required=True, metavar="PATH", help="rows; those it has are not run again")
    parser.add_argument("--table", type=Path, metavar="MD", help="write the table here, too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="loss, accuracy and effective rank")
    parser.add_argument("--balance-plot", type=Path, metavar="PNG", help="size of the steps of both factors")
    args = parse_counts(parser, arguments, ("steps", "rank", "threads"))
    if args.rates and not all(0 < rate < float("inf") for rate in args.rates):
        parser.error(f"--rates: found {args.rates}, expected numbers above 0")
    if args.seeds and min(args.seeds) < 1:
        parser.error(f"--seeds: found {args.seeds}, expected numbers above 0, as 0 chooses the learning rates")
    return args


def make_task(args: argparse.Namespace) -> Any:
    """The task at the size that was asked for."""
    if args.task == "sentence":
        from dataclasses import replace

        from benchmarks.quality.SentenceTask import SMALL, SentenceSize, SentenceTask

        given = {name: value for name in ("steps", "rank") if (value := getattr(args, name)) is not None}
        if args.layers is not None:
            given["layers"] = tuple(part.strip() for part in args.layers.split(",") if part.strip())
        return SentenceTask(replace(SMALL if args.small else SentenceSize(), **given))
    from benchmarks.quality.TinyTask import TinyTask
    from benchmarks.training.sweep import Sweep
    from modules.util.config.load import load_train_config

    # every draw counts alike; the schedule is that of the other task
    layers = args.layers or ("mid_block" if args.small else "attentions")
    changes = [
        f"layer_filter={layers}", "layer_filter_preset=custom", "loss_weight_fn=CONSTANT",
        "learning_rate_scheduler=LINEAR", "learning_rate_warmup_steps=0.1", "cache_dir=workspace-cache/lora_quality",
    ]  # fmt: skip
    if args.small:
        folder = "training_concepts/tiny_concept"
        concepts = [{"name": name, "path": f"{folder}/{name}", "type": kind, "text": {"prompt_source": "sample"}}
                    for name, kind in (("lumo", "STANDARD"), ("validation", "VALIDATION"))]  # fmt: skip
        changes += [f"concepts={json.dumps(concepts)}"]
    config = load_train_config(PRESET, changes, warn=warn)
    sweep = Sweep(config, args.steps or (4 if args.small else 200), lambda text: None)
    return TinyTask(sweep, args.rank or (4 if args.small else 16), {"untrained": list(sweep.untrained)})


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def compare(args: argparse.Namespace) -> None:
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.measuring import environment
    from benchmarks.quality.contest import GRID, SEEDS, rows_from_json, run_contest, summary, table, to_json
    from benchmarks.quality.contestants import choose
    from modules.util.atomic_file import write_bytes, write_json
    from modules.util.UserError import UserError

    import torch

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    chosen = choose(args.optimizers)
    rates = sorted(set(args.rates or ((1e-3, 1e-2) if args.small else GRID)))
    seeds = sorted(set(args.seeds or ((1,) if args.small else SEEDS)))
    result = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    task = make_task(args)
    facts = json.loads(json.dumps(to_json(task.facts)))
    if result and result["facts"] != facts:
        different = [name for name in facts if facts[name] != result["facts"].get(name)]
        raise UserError(
            f"{args.json}: was made with another {', '.join(different) or 'task'}; name another file, or set the "
            "options to what it has."
        )
    rows = rows_from_json(result.get("rows", []))
    result = {
        "script": "scripts/compare_lora_optimizers.py", **environment(torch.device("cpu"), PACKAGES), "facts": facts,
    }  # fmt: skip

    def write() -> None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, to_json({**result, "rows": rows, "summary": summary(rows)}))

    def found(row: dict[str, Any]) -> None:
        rows.append(row)
        accuracy = "" if row["accuracy"] is None else f", accuracy {row['accuracy']:.2%}"
        print(f"{row['optimizer']} rate {row['rate']:g} seed {row['seed']}: tuning {row['tuning']:.4f}, "
              f"validation {row['validation']:.4f}{accuracy}", flush=True)  # fmt: skip
        write()

    run_contest(task, chosen, rates, seeds, rows, found)
    write()
    text = table(summary(rows))
    print(f"\n{text}")
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(args.table, f"{text}\n".encode())
    if args.plot or args.balance_plot:
        from benchmarks.quality.plot import draw_balance, draw_quality

        if args.plot:
            draw_quality(rows, args.plot)
        if args.balance_plot:
            draw_balance(rows, args.balance_plot)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("json", "table", "plot", "balance_plot"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    os.chdir(ROOT)
    from modules.util.config.errors import ConfigError
    from modules.util.exit_status import exit_status

    return exit_status(lambda: compare(args), ConfigError, ValueError)


if __name__ == "__main__":
    sys.exit(main())
