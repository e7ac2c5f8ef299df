"""Reads adapters that behaviour.py trained in OneTrainer with our converter and our ComfyUI node.

    python scaled-onetrainer/checks/adapter_files.py FOLDER [--table FILE]

FOLDER is the --work folder of behaviour.py. To be run with this repository's Python. What either reads has to be what
was trained: of OFT the numbers that rotations are made of, of everything else the trained tensors.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from comfyui.nodes import read_patches
from comfyui.rotation import skew_from_triangles
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.checks import open_model

import torch
from torch import Tensor

from own import main
from safetensors.torch import load_file
from same_step import own_config
from upstream import COMMON

ROTATION = "oft_R.weight"


def check(folder: Path) -> str:
    """What came of one adapter; raises where it is not what was trained."""
    facts = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    scales = {known["name"]: known["scale"] for known in facts["parameters"]}
    trained = {name: value * scales[name] for name, value in load_file(folder / "trained.safetensors").items()}
    file, converted = folder / "out.safetensors", folder / "converted.safetensors"
    script = [sys.executable, ROOT / "scripts" / "convert_adapter.py", file, converted, "--overwrite"]
    # a miniature base is none of those that the script knows by itself
    base = ["--base", COMMON["base_model_name"]]
    subprocess.run([*script, "--format", "COMFY_LORA", *base], check=True, capture_output=True)
    counts = [_converter(path, trained) for path in (file, converted)]
    said = f"converter reads {counts[0]} tensors as trained, {counts[1]} of another format"
    if any(name.endswith(ROTATION) for name in trained):
        said += f"; the node reads {_node(file, trained)} rotations as trained"
    return said


def _converter(path: Path, trained: dict[str, Tensor]) -> int:
    model = open_model(own_config({"optimizer": {"optimizer": "SCALED_ADAMW_ADV"}}), torch.device("cpu"), print)
    layers = read_adapter(path).resolve(model.adapter_naming())
    found = {
        f"{component}.{layer}.{name}": tensor
        for component, own in layers.items()
        for layer, parts in own.items()
        for name, tensor in parts.items()
    }
    for name, value in trained.items():
        own = found[name.replace("text_encoder.text_model.", "text_encoder.", 1)]
        assert torch.allclose(own.float().view_as(value), value.float(), rtol=1e-6, atol=0), f"{name} differs"
    return len(trained)


def _node(path: Path, trained: dict[str, Tensor]) -> int:
    tensors = load_file(path)
    places = {f"lora_{name.removesuffix(f'.{ROTATION}').replace('.', '_')}": name for name in trained}
    places = {key.replace("lora_text_encoder_", "lora_te_", 1): name for key, name in places.items()}
    patches = read_patches(tensors, places)
    assert patches.keys() == trained.keys(), f"{len(patches)} of {len(trained)} layers"
    for name, patch in patches.items():
        expected = skew_from_triangles(trained[name])
        assert torch.allclose(patch.skew, expected, rtol=1e-6, atol=0) and expected.abs().max() > 0, name
    return len(patches)


if __name__ == "__main__":
    sys.exit(main(__doc__, "a file in our converter and node", check, needs="out.safetensors"))
