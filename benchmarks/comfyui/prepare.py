"""What is opened in ComfyUI: a base of SD 1.5's size with random weights, adapters of it, and their workflows."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules.model.BaseModel import family_of
from modules.model.families import FAMILIES
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.weight_output import save_weights
from modules.tool.comfy_workflow import workflow, write_workflow
from modules.util.atomic_file import write_json
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
SD_15 = ROOT / "resources" / "stable_diffusion" / "sd1"
BASE, PROMPT, PIXELS, STEPS, PICTURES = "random sd15.safetensors", "a photo of an ohwx cat", 64, 2, 2
# name -> what is trained
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True},
    "LoKr": {"peft_type": "LOKR"},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 16},
}
LOST_LAYER = "lora_unet_no_such_layer"


def make_base(comfyui: Path) -> Path:
    """Writes the base into ComfyUI's folder of checkpoints, as one file of 16 bits, if it is not there."""
    target = comfyui / "models" / "checkpoints" / BASE
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = comfyui / "base in parts"
    torch.manual_seed(0)
    parts = [kind.from_config(kind.load_config(SD_15 / name)) for kind, name in (
        (AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"), (PNDMScheduler, "scheduler"),
    )]  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(SD_15 / "text_encoder"))
    tokenizer = CLIPTokenizer.from_pretrained(SD_15 / "tokenizer")
    StableDiffusionPipeline(
        parts[0], text, tokenizer, parts[1], parts[2], None, None, requires_safety_checker=False
    ).to(torch.float16).save_pretrained(folder)  # fmt: skip
    config = TrainConfig.from_dict({
        "model_type": "STABLE_DIFFUSION_15", "base_model_name": str(folder), "training_method": "FINE_TUNE",
        "output_model_format": "SAFETENSORS", "output_dtype": "FLOAT_16", "concepts": [],
    })  # fmt: skip
    save_weights(target, [], family_of(config).load(config, torch.device("cpu")), config, print)
    shutil.rmtree(folder)
    return target


def train(comfyui: Path, kind: str) -> Path:
    """Trains an adapter for a step a picture, on the U-Net and the text encoder, and writes its workflow beside it.

    Args:
        comfyui: ComfyUI's folder of models and outputs; the adapter goes where ComfyUI looks for it.
        kind: one of `KINDS`.

    Returns:
        The adapter.
    """
    work = comfyui / "trainings" / kind
    adapter = comfyui / "models" / "loras" / f"{kind} of random sd15.safetensors"
    _draw_pictures(work / "pictures")
    part = {"train": True, "weight_dtype": "FLOAT_32"}
    options = KINDS[kind] | {
        "model_type": "STABLE_DIFFUSION_15", "base_model_name": str(comfyui / "models" / "checkpoints" / BASE),
        "training_method": "LORA", "lora_rank": 4, "lora_alpha": 4.0, "output_model_destination": str(adapter),
        "output_model_format": "KOHYA_LORA", "output_dtype": "FLOAT_16", "workspace_dir": str(work / "run"),
        "cache_dir": str(work / "cache"), "resolution": str(PIXELS), "batch_size": 1, "epochs": 1,
        "learning_rate": 0.01, "train_dtype": "FLOAT_32", "train_device": "cpu", "temp_device": "cpu",
        "unet": part, "text_encoder": part, "vae": {"weight_dtype": "FLOAT_32"},
        "concepts": [{"name": "cat", "path": str(work / "pictures")}],
        "samples": [{
            "prompt": PROMPT, "width": PIXELS, "height": PIXELS, "diffusion_steps": STEPS, "cfg_scale": 5.0, "seed": 3,
            "enabled": True,
        }],
        "sample_after_unit": "NEVER",
    }  # fmt: skip
    config_file = work / "config.json"
    config_file.write_text(json.dumps(options), encoding="utf-8")
    if not adapter.exists():
        subprocess.run([sys.executable, ROOT / "scripts" / "train.py", "--config-path", config_file], check=True)
    write_workflow(TrainConfig.from_dict(options), adapter, adapter.with_suffix(".json"), True, print)
    return adapter


def with_a_lost_layer(adapter: Path) -> Path:
    """The same adapter with a layer that no model has, so that it is seen that ComfyUI tells of lost keys."""
    target = adapter.with_name(f"lost {adapter.name}")
    tensors = load_file(adapter)
    first = next(name for name in tensors if name.endswith(".lora_down.weight")).removesuffix(".lora_down.weight")
    parts = {name.removeprefix(first): value for name, value in tensors.items() if name.startswith(f"{first}.")}
    save_file(tensors | {f"{LOST_LAYER}{part}": value.clone() for part, value in parts.items()}, target)
    graph = json.loads(adapter.with_suffix(".json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        node["widgets_values"] = [target.name if value == adapter.name else value for value in node["widgets_values"]]
    write_json(target.with_suffix(".json"), graph)
    return target


def write_family_workflows(folder: Path, adapter: Path) -> Iterator[tuple[str, Path]]:
    """The workflow of each model type that has one, with an adapter that stands for its own; model type and file."""
    read = read_adapter(adapter)
    folder.mkdir(parents=True, exist_ok=True)
    for model_type in (kind for family in FAMILIES for kind in family.model_types):
        config = TrainConfig(model_type=model_type, base_model_name="a model")
        try:
            graph = workflow(config, read, SampleConfig(prompt=PROMPT, width=PIXELS, height=PIXELS))
        except UserError:
            continue
        write_json(folder / f"{model_type}.json", graph)
        yield model_type, folder / f"{model_type}.json"


def _draw_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(PICTURES):
        pixels = torch.randint(0, 256, (PIXELS, PIXELS, 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(PROMPT, encoding="utf-8")
