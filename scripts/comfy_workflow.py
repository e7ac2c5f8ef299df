"""Writes a workflow for ComfyUI that draws with a trained adapter; drop the file onto ComfyUI's window.

comfy_workflow.py CONFIG                      of the config's output, beside it
comfy_workflow.py CONFIG --adapter FILE       of another file of the same training
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.config.errors import ConfigError
from modules.util.exit_status import exit_status


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="preset or config that trained the adapter")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="the config's output if not given")
    parser.add_argument("--output", type=Path, metavar="JSON", help="beside the adapter if not given")
    parser.add_argument("--overwrite", action="store_true", help="replaces the workflow if it exists")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    # torch takes seconds to load; a wrong command line should not wait for it
    from modules.tool.comfy_workflow import write_workflow
    from modules.tool.ComfyGraph import workflow_place
    from modules.util.config.load import load_train_config

    config = load_train_config(args.config)
    adapter = args.adapter or Path(config.output_model_destination)
    target = args.output or workflow_place(adapter)
    write_workflow(config, adapter, target, args.overwrite, print)
    print(f"written: {target}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    return exit_status(lambda: run(args), ConfigError)


if __name__ == "__main__":
    sys.exit(main())
