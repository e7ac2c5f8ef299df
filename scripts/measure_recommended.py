"""Trains the tiny base with each setting that the window recommends, at its learning rate and at others beside it."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts

# half of the preset's, so that all settings take half an hour of one core
BATCH = 4
PRESET = ROOT / "training_presets" / "Tiny" / "#tiny LoRA.json"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=140, help="of each training")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings with this in their name")
    parser.add_argument("--json", type=Path, required=True, metavar="PATH", help="rows; those it has are not run again")
    return parse_counts(parser, arguments, ("steps", "threads"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    args.json = args.json.resolve()
    os.chdir(ROOT)
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.measuring import environment
    from benchmarks.training.recommended_settings import SETTINGS, table
    from benchmarks.training.sweep import Sweep
    from modules.util.atomic_file import write_json
    from modules.util.config.load import load_train_config
    from modules.util.UserError import UserError

    import torch

    torch.set_num_threads(args.threads)
    result = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    if result and result["steps"] != args.steps:
        print(f"error: {args.json} was made with {result['steps']} steps; name another file", file=sys.stderr)
        return 1
    rows = result.setdefault("rows", [])
    result |= {
        "script": "scripts/measure_recommended.py", "steps": args.steps, "batch_size": BATCH,
        **environment(torch.device("cpu"), ["torch", "diffusers"]),
    }  # fmt: skip
    try:
        config = load_train_config(PRESET, [f"batch_size={BATCH}", "cache_dir=workspace-cache/recommended"], warn=print)
        sweep = Sweep(config, args.steps, lambda text: None)
        result["untrained"] = sweep.untrained
        for setting in SETTINGS:
            for rate in setting.rates:
                known = any(row["name"] == setting.name and row["rate"] == rate for row in rows)
                if known or args.only not in setting.name:
                    continue
                start = time.perf_counter()
                outcome = sweep.run(setting.values(), rate)
                rows.append({
                    "name": setting.name, "rate": rate, "training": outcome.training, "validation": outcome.validation,
                    "last_loss": outcome.curve[-1], "seconds": round(time.perf_counter() - start, 1),
                })  # fmt: skip
                print(f"{setting.name} {rate:g}: {outcome.validation:.4f}", flush=True)
                args.json.parent.mkdir(parents=True, exist_ok=True)
                write_json(args.json, result)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
