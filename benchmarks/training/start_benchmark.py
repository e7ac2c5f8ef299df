"""How long a run takes to its first step, and what it opens on the way: with an empty cache, and with a complete one.

Two cases: a random model of 1 GB with few images, and a miniature with very many. Each start is a process of its
own, as files that were loaded and modules that were imported would count for nothing in the second.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, Stopwatch, environment
from benchmarks.torture.miniature import save_pipeline

import torch

from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

SIDES = ((48, 48), (64, 48), (48, 64), (80, 48))
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
NO_CHECKPOINTING = {"gradient_checkpointing": False}


def measure(
    folder: Path, images: int, many_images: int, epochs: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Both cases, two starts each; needs about 2 GB of disk.

    Args:
        folder: for models, images and caches.
        images: of the large model.
        many_images, epochs: of the miniature's run.
        say: gets a line for each start.
    """
    cases = {
        "model of 1 GB": (save_large, images, 1),
        "many images": (save_pipeline, many_images, epochs),
    }
    found: dict[str, Any] = {}
    for name, (save, count, passes) in cases.items():
        place = folder / name.replace(" ", "_")
        base = save(place)
        draw(place / "images", count)
        sizes = {one.name: weight_bytes(one) for one in sorted(base.iterdir()) if one.is_dir() and weight_bytes(one)}
        found[name] = {"images": count, "epochs": passes, "bytes": sizes, "starts": []}
        write_config(place, base, passes)
        for kind in ("empty cache", "complete cache"):
            command = [sys.executable, str(ROOT / "scripts" / "benchmark_start.py"), "--one-start", str(place)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name]["starts"].append({"cache": kind, **json.loads(done.stdout.splitlines()[-1])})
            say(f"{name}, {kind}: {found[name]['starts'][-1]}")
    packages = ["torch", "diffusers", "transformers", "safetensors"]
    return {"environment": environment(torch.device("cpu"), packages), "cases": found}


def save_large(folder: Path) -> Path:
    """The miniature with a larger denoiser and a text encoder of 0.9 GB, with random weights; returns its path."""
    base = save_pipeline(folder, (192, 384), 1024)
    config = CLIPTextConfig.from_pretrained(base / "text_encoder")
    config.num_hidden_layers = 27
    CLIPTextModel(config).save_pretrained(base / "text_encoder")
    return base


def weight_bytes(folder: Path) -> int:
    """Of the weight files in a component's folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def draw(folder: Path, count: int) -> None:
    """So many small pictures of noise with captions, no two alike."""
    folder.mkdir(parents=True)
    for index in range(count):
        width, height = SIDES[index % len(SIDES)]
        generator = torch.Generator().manual_seed(index)
        small = torch.randint(0, 256, (height // 8, width // 8, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(small.numpy()).resize((width, height)).save(folder / f"{index:05}.png")
        (folder / f"{index:05}.txt").write_text(f"shape number {index % 100}", encoding="utf-8")


def write_config(place: Path, base: Path, epochs: int) -> None:
    """The config of a LoRA on the denoiser as `config.json`."""
    config = {
        "training_method": "LORA", "base_model_name": str(base), "model_type": "STABLE_DIFFUSION_15",
        "workspace_dir": str(place / "workspace"), "cache_dir": str(place / "cache"),
        "output_model_destination": str(place / "lora.safetensors"), "concepts": [{"path": str(place / "images")}],
        "samples": [SAMPLE], "sample_after_unit": "NEVER", "backup_after_unit": "NEVER", "tensorboard": False,
        "resolution": "48", "batch_size": 4, "epochs": epochs, "train_dtype": "FLOAT_32", "train_device": "cpu",
        "unet": NO_CHECKPOINTING, "text_encoder": {"train": False, **NO_CHECKPOINTING}, "lora_rank": 4,
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")


def one_start(place: Path) -> dict[str, Any]:
    """Runs to the first step in this process.

    Returns:
        Seconds from the start, imports not counted: until images are checked, until components are loaded, until the
        first step begins, and to its end; first those of the clock, then those of this process on the processor, which
        count on a busy machine. Seconds of planning, and the components that were opened.
    """
    from modules.dataLoader.TrainingData import TrainingData
    from modules.model.ModelSource import FolderSource
    from modules.trainer.events import TrainCommands, TrainEvents
    from modules.trainer.RunPlan import RunPlan
    from modules.trainer.Trainer import Trainer
    from modules.util.config.load import load_train_config

    start, own_start, commands = time.perf_counter(), time.process_time(), TrainCommands()
    at: dict[str, tuple[float, float]] = {}
    opened: list[str] = []

    def now() -> tuple[float, float]:
        return round(time.perf_counter() - start, 2), round(time.process_time() - own_start, 2)

    def listen(kind: str, values: dict[str, Any]) -> None:
        if kind == "status" and values["text"].startswith("Loading"):
            at["checked"] = now()
        if kind == "progress" and values["stage"] == "training":
            at.setdefault("ready", now())
        if kind == "step" and "first step" not in at:
            at["first step"] = now()
            commands.stop = True

    read = FolderSource.module

    def count(source: FolderSource, component: str, dtype: torch.dtype) -> torch.nn.Module:
        module = read(source, component, dtype)
        opened.append(component)
        at[f"{component} loaded"] = now()
        return module

    FolderSource.module = count
    try:
        with Stopwatch() as watch:
            watch.watch(RunPlan, "__init__", "planning")
            watch.watch(TrainingData, "plan", "planning")
            Trainer(load_train_config(place / "config.json"), TrainEvents([listen]), commands).run()
    finally:
        FolderSource.module = read
    return {"opened": opened, "seconds": at, "planning": round(watch.seconds["planning"], 3)}
