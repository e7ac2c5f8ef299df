"""Measures how long steps wait for data that does not fit into memory: read by the step, and read ahead in threads."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts, write_numbers

CAPTIONS = ("SDXL", "Flux.2 dev")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", nargs="+", choices=CAPTIONS, default=list(CAPTIONS))
    parser.add_argument("--pictures", type=int, default=1000, help="with captions of Flux.2 dev 16 MB of disk each")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step")
    parser.add_argument("--step-ms", type=int, default=50, help="of a step that has its batch")
    parser.add_argument("--threads", type=int, default=2, help="that read ahead, as dataloader_threads")
    parser.add_argument("--passes", type=int, default=2, help="over the pictures; the first verifies checksums")
    parser.add_argument("--folder", type=Path, help="of pictures and caches, which stay; otherwise they are temporary")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    return parse_counts(parser, arguments, ("pictures", "batch", "step_ms", "threads", "passes"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    # slow to load, and OMP_NUM_THREADS counts only before
    from benchmarks.feeding.feeding import Setting, measure
    from benchmarks.measuring import environment
    from modules.util.UserError import UserError

    import torch

    result = {
        "script": "scripts/benchmark_feeding.py",
        **environment(torch.device("cpu"), ["torch", "numpy"]),
        "cases": [],
    }
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for captions in args.captions:
                setting = Setting(
                    captions=captions, pictures=args.pictures, batch=args.batch, step_seconds=args.step_ms / 1e3,
                    threads=args.threads, passes=args.passes,
                )  # fmt: skip
                folder = args.folder or Path(temporary)
                result["cases"].append(measure(setting, folder, lambda text: print(text, flush=True)))
                write_numbers(args.output, result)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if all(case["same_adapter"] for case in result["cases"]) else 1


if __name__ == "__main__":
    sys.exit(main())
