"""The model that runs of the check train: random weights, as large as the device has room for."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.Bench import Bench
from benchmarks.memory.memory_comparison import SMALL, Size, make_base, write_config
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig

import torch

# the channels of Stable Diffusion 1.5
USUAL = Size((320, 640, 1280, 1280), 2, 512, 2)
USUAL_BYTES = 10 << 30  # of a device on which that one is trained without checkpointing
MEDIUM = Size((128, 256, 512, 512), 2, 256, 2)


def size_of(bench: Bench) -> Size:
    """The size of the model, and what it is trained on."""
    if bench.small:
        return SMALL
    if not bench.is_cuda:
        return MEDIUM
    return USUAL if torch.cuda.get_device_properties(bench.device).total_memory >= USUAL_BYTES else MEDIUM


def base_of(bench: Bench) -> Path:
    """The model's folder, made at the first call."""
    folder = bench.folder / "base"
    if not (folder / "model" / "model_index.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make_base(folder, size_of(bench))
    return folder / "model"


def config_of(bench: Bench, name: str, options: dict[str, Any]) -> TrainConfig:
    """A run on that model in a folder of its own.

    Args:
        name: of the folder; made.
        options: of the config, beside those of every run of the check.
    """
    own = {
        "train_device": str(bench.device), "train_dtype": "FLOAT_32" if bench.small else "BFLOAT_16",
        "epochs": 2 if bench.small else 4,
        "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}, "learning_rate": 0.01,
        "learning_rate_scheduler": "CONSTANT", "learning_rate_warmup_steps": 0, "lora_rank": 16, "lora_alpha": 16.0,
    }  # fmt: skip
    denoiser = {"gradient_checkpointing": False, **options.get("unet", {})}
    path = write_config(
        bench.folder / name, base_of(bench), size_of(bench), {**own, **options, "unet": denoiser}
    )  # fmt: skip
    return load_train_config(path)
