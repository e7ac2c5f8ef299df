"""Tells where the memory of a run will go and which card it fits on, before its base model is downloaded."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="presets or configs, JSON")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as in scripts/train.py")
    parser.add_argument("--output", type=Path, metavar="JSON",
                        help="write every number here, in bytes; of several configs by their names")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="one table with a row for each config")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    # slow to load
    from modules.tool.memory_estimate import estimate_memory, load_without_weights
    from modules.tool.MemoryEstimate import MemoryEstimate, card_line, memory_table, phases_in_markdown
    from modules.util.config.errors import ConfigError
    from modules.util.config.load import load_train_config
    from modules.util.UserError import UserError

    def warn(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    estimates: dict[str, MemoryEstimate] = {}
    try:
        for path in args.configs:
            config = load_train_config(path, args.override, warn=warn)
            found = estimates[path.stem] = estimate_memory(load_without_weights(config, warn), config, warn)
            if not args.markdown:
                heading = [path.stem] if len(args.configs) > 1 else []
                print("\n".join([*heading, card_line(found), "", memory_table(found)]), flush=True)
        if args.output:
            numbers = {name: found.to_dict() for name, found in estimates.items()}
            result = numbers if len(numbers) > 1 else found.to_dict()
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ConfigError, UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.markdown:
        print(phases_in_markdown(estimates))
    return 0


if __name__ == "__main__":
    sys.exit(main())
