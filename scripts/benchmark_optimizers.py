"""Measures our optimizers' steps on SDXL's LoRA parameters against adv_optm's and torch's, and writes JSON."""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps; in each round every optimizer takes one")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each optimizer that are not timed")
    parser.add_argument("--case-seconds", type=float, default=120, help="no more rounds of a case after so long")
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="TEXT", help="only those with one of these in the name"
    )
    parser.add_argument("--every-rule", action="store_true", help="each feature with every rule that has it")
    parser.add_argument(
        "--compiled", action="store_true", help="ours with compile, too; on a CPU that needs a C++ compiler"
    )
    parser.add_argument("--rank", type=int, help="of the LoRA; 16, or 8 with --small")
    parser.add_argument("--small", action="store_true", help="60 small tensors, to try it; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every number here")
    args = parse_counts(parser, arguments, ("threads", "rounds", "warm_up", "rank"))
    args.rank = args.rank or (8 if args.small else 16)
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.measuring import environment
    from benchmarks.optimizers.cases import cases, matching
    from benchmarks.optimizers.measure import GOALS, Settings, measure_case, misses, table
    from benchmarks.optimizers.parameter_set import ParameterSet, scaled_down, sdxl_layers

    import torch

    torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
        selected = matching(cases(args.every_rule), args.cases)
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device: found {args.device}, expected cpu or cuda")
        torch.empty(1, device=device)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    layers = scaled_down(sdxl_layers()) if args.small else sdxl_layers()
    settings = Settings(args.rounds, args.warm_up, args.case_seconds, args.compiled)
    result = {
        "script": "scripts/benchmark_optimizers.py",
        **environment(device, ["torch", "adv_optm", "diffusers"]),
        "settings": vars(settings) | {"rank": args.rank, "small": args.small, "every_rule": args.every_rule},
        "goals": GOALS,
        "cases": [],
    }
    rows, dtype, parameter_set = result["cases"], None, None
    for case in selected:
        if case.dtype != dtype:
            dtype, parameter_set = case.dtype, None
            parameter_set = ParameterSet(layers, args.rank, device, getattr(torch, dtype))
        rows.append(measure_case(case, parameter_set, device, settings))
        print(f"{case.name}: {'; '.join(misses(rows[-1], device)) or 'ok'}", flush=True)
        result["parameters"] = {
            "layers": len(layers), "tensors": len(parameter_set.infos), "elements": parameter_set.elements
        }  # fmt: skip
        if args.json:  # after each case: what is measured stays, whatever happens to the next
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if args.json:
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
