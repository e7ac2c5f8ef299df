"""Trains the tiny base model from nothing and writes it as a diffusers directory. Stopped, it goes on where it was."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tinyBase.build import Recipe, build

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("models/tiny_sd"))
    parser.add_argument("--workspace", type=Path, default=Path("workspace/tiny_base"), help="checkpoints and caches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    output, workspace, device = (arguments.pop(key) for key in ("output", "workspace", "device"))
    build(Recipe(**arguments), workspace, output, torch.device(device))


if __name__ == "__main__":
    main()
