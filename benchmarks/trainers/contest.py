"""The same training by trainers side by side, each run in a process of its own, in turns: start, steps and memory."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, environment, spread

import torch

OURS, ONETRAINER, PLAIN = "ours", "OneTrainer", "plain diffusers + peft"
CONCEPTS = ("lumo", "vintage")
# steps of a run that are not counted: state and caches of kernels are made in them
WARM_UP = 4
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class ContestSettings:
    """What is compared.

    Attributes:
        batch, epochs: of each run.
        rank: of a LoRA on all layers of the UNet; alpha is the same.
        rounds: of all trainers in turns, each with a first start and a second one on its cache.
    """

    batch: int = 4
    epochs: int = 5
    rank: int = 16
    rounds: int = 3


def training(settings: ContestSettings, folder: Path) -> dict[str, Any]:
    """The config that the trainers get, in OneTrainer's words."""
    place = ROOT / "training_concepts" / "tiny_concept"
    concepts = [{"name": name, "path": str(place / name), "text": {"prompt_source": "sample"}} for name in CONCEPTS]
    return {
        "model_type": "STABLE_DIFFUSION_15", "training_method": "LORA", "peft_type": "LORA",
        "base_model_name": str(ROOT / "models" / "tiny_sd"), "lora_rank": settings.rank,
        "lora_alpha": float(settings.rank), "resolution": "64", "aspect_ratio_bucketing": False,
        "batch_size": settings.batch,
        "epochs": settings.epochs, "learning_rate": 1e-4, "learning_rate_scheduler": "CONSTANT",
        "learning_rate_warmup_steps": 0, "clip_grad_norm": 1.0, "optimizer": {"optimizer": "ADAMW"},
        "text_encoder": {"train": False}, "train_device": "cpu", "temp_device": "cpu", "train_dtype": "FLOAT_32",
        "weight_dtype": "FLOAT_32", "lora_weight_dtype": "FLOAT_32", "gradient_checkpointing": "OFF",
        "unet": {"train": True, "weight_dtype": "FLOAT_32"}, "vae": {"weight_dtype": "FLOAT_32"},
        "sample_after_unit": "NEVER", "backup_after_unit": "NEVER", "save_every_unit": "NEVER",
        "validate_after_unit": "NEVER", "tensorboard": False, "clear_cache_before_training": False,
        "dataloader_threads": 1, "concepts": concepts,
        "samples": [], "workspace_dir": str(folder / "workspace"), "cache_dir": str(folder / "cache"),
        "output_model_destination": str(folder / "lora.safetensors"),
    }  # fmt: skip


def images_of(folder: Path) -> list[Path]:
    """The pictures of a concept, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))


def commands(
    settings: ContestSettings, folder: Path, onetrainer: Path | None, python: Path | None
) -> dict[str, list[str]]:
    """The command line of each trainer that is there; writes their configs.

    Args:
        onetrainer, python: a checkout of OneTrainer and its interpreter; None leaves it out.
    """
    found = {}
    for name, module in ((OURS, "own"), (PLAIN, "plain")):
        place = folder / module
        place.mkdir(parents=True, exist_ok=True)
        config = place / "config.json"
        own = training(settings, place)
        # what OneTrainer says once for all components
        own["unet"]["gradient_checkpointing"] = False
        config.write_text(json.dumps(own), encoding="utf-8")
        found[name] = [sys.executable, "-m", f"benchmarks.trainers.{module}", str(config)]
    if onetrainer is not None:
        place = folder / "onetrainer"
        place.mkdir(parents=True, exist_ok=True)
        own = training(settings, place)
        # the checks give it places and concepts in the ways of OneTrainer
        for key in ("concepts", "samples", "workspace_dir", "cache_dir", "output_model_destination", "base_model_name"):
            del own[key]
        config = place / "settings.json"
        config.write_text(json.dumps(own), encoding="utf-8")
        found[ONETRAINER] = [
            str(python), str(ROOT / "scaled-onetrainer" / "checks" / "timed.py"), "--onetrainer", str(onetrainer),
            "--work", str(place), "--config", str(config),
        ]  # fmt: skip
    return found


def run(command: Sequence[str]) -> dict[str, Any]:
    """One run: `start` seconds until the end of the first step, `step` seconds, `peak_bytes` and `trained` numbers.

    Raises:
        RuntimeError: if it fails, with its last lines.
    """
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.time()
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} failed:\n{last}")
    found = json.loads(done.stdout.splitlines()[-1])
    ended = found["ended"]
    seconds = [later - earlier for earlier, later in zip(ended[WARM_UP:], ended[WARM_UP + 1 :], strict=False)]
    return {
        "start": ended[0] - began, "step": statistics.median(seconds), "steps": len(ended),
        "peak_bytes": found["peak_bytes"], "trained": found["trained"],
    }  # fmt: skip


def compare(
    settings: ContestSettings,
    folder: Path,
    onetrainer: Path | None,
    python: Path | None,
    say: Callable[[str], None],
    commanded: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Runs the contest.

    Args:
        settings: what is compared.
        folder: for caches and outputs.
        onetrainer, python: see `commands`.
        say: gets a line for each run.
        commanded: command lines instead of those of `commands`.

    Raises:
        ValueError: if the trainers do not train the same number of numbers, or steps.
    """
    lines = commands(settings, folder, onetrainer, python) if commanded is None else commanded
    images = sum(len(images_of(ROOT / "training_concepts" / "tiny_concept" / name)) for name in CONCEPTS)
    runs: dict[str, list[dict[str, dict[str, Any]]]] = {name: [] for name in lines}
    for number in range(settings.rounds):
        names = list(lines)
        # nobody is always behind the same other one
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for cache in folder.glob("*/cache"):
                shutil.rmtree(cache)
            both = {which: run(lines[name]) for which in (FIRST, SECOND)}
            runs[name].append(both)
            first, second = both[FIRST], both[SECOND]
            say(f"{name}: first start {first['start']:.1f} s, second {second['start']:.1f} s, "
                f"{1e3 * second['step']:.1f} ms a step, {second['peak_bytes'] / 2**20:.0f} MiB")  # fmt: skip
    for what in ("trained", "steps"):
        counts = {name: found[0][FIRST][what] for name, found in runs.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the trainers do not do the same: {what} {counts}")
    return {
        "script": "scripts/compare_trainers.py",
        **environment(torch.device("cpu"), ("torch", "diffusers", "transformers", "peft")),
        "settings": vars(settings), "images": images, "trained": next(iter(runs.values()))[0][FIRST]["trained"],
        "figures": {name: _figures(found, images) for name, found in runs.items()}, "runs": runs,
    }  # fmt: skip


def _figures(found: Sequence[Mapping[str, Mapping[str, Any]]], images: int) -> dict[str, dict[str, float]]:
    both = [own[which] for own in found for which in (FIRST, SECOND)]
    return {
        "step_seconds": spread([own["step"] for own in both]),
        "first_start_seconds": spread([own[FIRST]["start"] for own in found]),
        "second_start_seconds": spread([own[SECOND]["start"] for own in found]),
        "cache_seconds_an_image": spread([(own[FIRST]["start"] - own[SECOND]["start"]) / images for own in found]),
        "peak_bytes": spread([own["peak_bytes"] for own in both]),
    }


def table(result: Mapping[str, Any]) -> str:
    """Medians as a Markdown table, in brackets over ours."""
    figures = result["figures"]
    kinds = {
        "step_seconds": ("a step, ms", 1e3, ".1f"), "first_start_seconds": ("start to first step, s", 1.0, ".1f"),
        "second_start_seconds": ("second start to first step, s", 1.0, ".1f"),
        "cache_seconds_an_image": ("caching an image, ms", 1e3, ".0f"),
        "peak_bytes": ("peak memory, MiB", 2**-20, ".0f"),
    }  # fmt: skip
    names = list(figures)
    rows = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for key, (title, factor, form) in kinds.items():
        ours = figures[OURS][key]["median"]
        cells = []
        for name in names:
            own = figures[name][key]["median"]
            ratio = "" if name == OURS or ours <= 0 else f" ({own / ours:.2f}×)"
            cells.append(f"{own * factor:{form}}{ratio}")
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)
