"""Writes small models with random weights of other families than the tiny base's, for families.py.

    python scaled-onetrainer/checks/make_tiny_bases.py FOLDER

To be run with this repository's Python: they are the ones that its own tests train.
"""

import importlib.util
import sys
from pathlib import Path

import torch

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    folder = Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location("small_models", ROOT / "tests" / "model" / "conftest.py")
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    torch.manual_seed(0)
    small._random_xl_pipeline().save_pretrained(folder / "sdxl")
    # OneTrainer's transformers reads no newer names
    path = folder / "sdxl" / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{name}": value for name, value in load_file(path).items()}, path, {"format": "pt"})
    # OneTrainer tells a Flux.2 dev by its 48 heads, which no small model has
    small._flux2_pipeline("klein").save_pretrained(folder / "flux2_klein")
    return 0


if __name__ == "__main__":
    sys.exit(main())
