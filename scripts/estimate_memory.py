"""Tells where the memory of a run will go, before its base model is downloaded."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="preset or config, JSON")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as in scripts/train.py")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here, in bytes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    # slow to load
    from modules.trainer.memory_estimate import estimate_memory, load_without_weights, memory_table
    from modules.util.config.errors import ConfigError
    from modules.util.config.load import load_train_config
    from modules.util.UserError import UserError

    def warn(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    try:
        config = load_train_config(args.config, args.override, warn=warn)
        estimate = estimate_memory(load_without_weights(config, warn), config, warn)
        if args.output:
            args.output.write_text(json.dumps(estimate.to_dict(), indent=1) + "\n", encoding="utf-8")
    except (ConfigError, UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(memory_table(estimate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
