"""The estimate of a run's memory against what the run takes, on models of random weights that are not small."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, environment
from modules.model.clip_tokenizer import clip_tokenizer

import torch

from PIL import Image

# glibc gives freed memory back at once, so that the resident memory is what the run holds
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STEPS = 3


@dataclass(frozen=True)
class Size:
    """A UNet's channels at each resolution, its layers, and what it is trained on."""

    channels: tuple[int, ...]
    layers: int
    resolution: int
    batch: int


LARGE = Size((128, 256, 512, 512), 2, 256, 2)
SMALL = Size((32, 64), 1, 64, 2)
# name -> options; what is trained and how differs, so that in each something else takes the most
CASES: dict[str, dict[str, Any]] = {
    "LoRA, no checkpointing": {
        "training_method": "LORA", "lora_rank": 16, "unet": {"gradient_checkpointing": False},
    },
    "OFT, INT_8 base, checkpointing": {
        "training_method": "LORA", "peft_type": "OFT_2", "unet": {"weight_dtype": "INT_8"},
        "optimizer": {"optimizer": "ADAMW_ADV"},
    },
    "all weights, checkpointing": {
        "training_method": "FINE_TUNE", "optimizer": {"optimizer": "ADAMW"},
    },
}  # fmt: skip


def make_base(folder: Path, size: Size) -> Path:
    """A Stable Diffusion of random weights in diffusers' layout."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    count = len(size.channels)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=size.channels, layers_per_block=size.layers, norm_num_groups=32,
        cross_attention_dim=256, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * (count - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (count - 1),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=32,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2,
            projection_dim=256, num_attention_heads=4, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


def write_config(folder: Path, base: Path, size: Size, options: dict[str, Any]) -> Path:
    """A run of a few steps in `folder` on as many images as they need."""
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(size.batch * STEPS):
        picture = Image.linear_gradient("L").resize((size.resolution,) * 2).rotate(90 * index)
        Image.merge("RGB", [picture] * 3).save(images / f"{index}.png")
    config = {
        "base_model_name": str(base), "model_type": "STABLE_DIFFUSION_15", "workspace_dir": str(folder / "workspace"),
        "cache_dir": str(folder / "cache"), "output_model_destination": str(folder / "result.safetensors"),
        "concepts": [{"path": str(images)}], "samples": [], "sample_after_unit": "NEVER", "backup_after_unit": "NEVER",
        "resolution": str(size.resolution), "batch_size": size.batch, "epochs": 1, "train_dtype": "FLOAT_32",
        "train_device": "cpu", "temp_device": "cpu", "tensorboard": False, "text_encoder": {"train": False},
        **options,
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def resident_peak_of_training(config: Path, warm_up: Path) -> int:
    """Bytes that a run's steps hold beyond what the process held after a run of another, small model.

    For a process of its own, with `MALLOC` in its environment; Linux only. The first step, which makes what later ones
    have from their start, is not measured.
    """
    _run(warm_up, {})
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, found = _status("VmRSS"), {}

    def after_step(step: int) -> None:
        if step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is held now
        found["peak"] = _status("VmHWM")

    _run(config, {"step": after_step})
    return found["peak"] - before


def _run(config: Path, after: dict[str, Any]) -> None:
    from modules.trainer.events import TrainCommands, TrainEvents
    from modules.trainer.Trainer import Trainer
    from modules.util.config.load import load_train_config

    def listen(kind: str, values: dict[str, Any]) -> None:
        if kind in after:
            after[kind](values[kind])

    Trainer(load_train_config(config), TrainEvents([listen]), TrainCommands()).run()


def _status(key: str) -> int:
    """A line of the process's memory, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def compare(folder: Path, say: Any, size: Size = LARGE, names: tuple[str, ...] = tuple(CASES)) -> dict[str, Any]:
    """Estimate and measurement of each case, each in a process of its own, and their ratio."""
    for kind in ("large", "small"):
        (folder / kind).mkdir(parents=True)
    base, small = make_base(folder / "large", size), make_base(folder / "small", SMALL)
    cases = {}
    for index, name in enumerate(names):
        options, place = CASES[name], folder / f"case {index}"
        config = write_config(place / "run", base, size, options)
        warm_up = write_config(place / "warm up", small, SMALL, options)
        estimate = json.loads(_script("estimate_memory.py", str(config), "--output", str(place / "estimate.json"),
                                      result=place / "estimate.json"))  # fmt: skip
        measured = int(_script("benchmark_memory.py", "--measure", str(config), str(warm_up)).split()[-1])
        expected = sum(estimate["phases"]["training"].values())
        cases[name] = {"estimate": estimate["phases"]["training"], "estimated": expected, "measured": measured,
                       "ratio": expected / measured}  # fmt: skip
        say(f"{name}: estimated {expected / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB, "
            f"ratio {expected / measured:.3f}")  # fmt: skip
    return {"environment": environment(torch.device("cpu"), ("torch", "diffusers")), "cases": cases}


def _script(name: str, *arguments: str, result: Path | None = None) -> str:
    """What a script prints, or writes to `result`."""
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    done = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return result.read_text(encoding="utf-8") if result else done.stdout
