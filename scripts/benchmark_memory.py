"""Compares the estimate of scripts/estimate_memory.py with what runs take on a CPU, and writes JSON. Linux only.

Others of its measurements are chosen by an option, and run everywhere.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("CONFIG", "WARM_UP"),
                        help="only run CONFIG after WARM_UP and print the bytes that its steps took")  # fmt: skip
    parser.add_argument("--formats", action="store_true",
                        help="compare the formats of frozen weights instead: bytes, time and error")  # fmt: skip
    parser.add_argument("--offload", action="store_true",
                        help="compare steps that copy while they compute with others, on a slow link")  # fmt: skip
    parser.add_argument("--backup", action="store_true",
                        help="measure how long a backup of 300 MB stops training")  # fmt: skip
    args = parser.parse_args(arguments)
    from benchmarks.memory.backup_pause import measure_pause
    from benchmarks.memory.format_comparison import compare_formats
    from benchmarks.memory.memory_comparison import compare, resident_peak_of_training
    from benchmarks.memory.offload_overlap import measure_overlap

    if args.measure:
        print(resident_peak_of_training(*args.measure))
        return 0
    if args.offload:
        result = measure_overlap(say=lambda text: print(text, flush=True))
    elif args.backup:
        result = measure_pause()
        print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))
    elif args.formats:
        result = compare_formats()
        print(json.dumps({name: result[name] for name in ("layer", "denoiser bytes")}, indent=1))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = compare(Path(folder), say=lambda text: print(text, flush=True))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
