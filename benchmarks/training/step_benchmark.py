"""The training step against the plain loop: same model, batches, resolution, adapters and optimizer, in one process."""

import contextlib
import io
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import modules.trainer.objective as objective_module
import modules.trainer.Trainer as trainer_module
from benchmarks.measuring import Stopwatch, environment, spread
from benchmarks.training.plain_loop import PlainLoop, PlainSettings
from modules.dataLoader.plan import PlannedBatch
from modules.run.ConsoleProgress import ConsoleProgress
from modules.trainer.events import TrainCommands, TrainEvents
from modules.trainer.Logger import RunEnd
from modules.util.config.load import train_config_from_dict
from modules.util.enum.DataType import DataType

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"float32": (DataType.FLOAT_32, torch.float32), "bfloat16": (DataType.BFLOAT_16, torch.bfloat16)}
OURS, PLAIN, PLAIN_FUSED, PLAIN_UNCACHED = "ours", "plain", "plain_fused", "plain_uncached"
PROFILE_CHUNK = 2
LEARNING_RATE, CLIP = 1e-4, 1.0
# wall clock, and processor time of all threads, on which a busy machine weighs less
Seconds = tuple[float, float]


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    Attributes:
        model: base model, a folder in diffusers' layout; relative paths start at the repository.
        concepts: folders of images with captions, likewise.
        batch: images a step; the concepts should hold a multiple of it.
        resolution: pixels; images are cropped to squares.
        rank: of the adapters; alpha is the same.
        steps: in a block. Blocks of the loops take turns, so that what else the machine does meets all of them.
        blocks: measured blocks of each loop.
        warm_up: blocks before these, not counted.
        profile_steps: steps of each loop in which every phase is timed, after the measured ones; an even number.
        text_encoder: trains the text encoder, too.
        checkpointing: gradient checkpointing in all trained components.
        dtype: "float32" or "bfloat16" (frozen weights and autocast).
        more_peers: also runs the plain loop with torch's fused AdamW, and the one that encodes images and captions at
            each step.
        device: `train_device` of the run, and so that of all loops.
    """

    model: str
    concepts: tuple[str, ...]
    batch: int = 8
    resolution: int = 64
    rank: int = 16
    steps: int = 10
    blocks: int = 24
    warm_up: int = 1
    profile_steps: int = 30
    text_encoder: bool = False
    checkpointing: bool = False
    dtype: str = "float32"
    more_peers: bool = True
    device: str = "auto"

    @property
    def total_steps(self) -> int:
        return self.steps * (self.blocks + self.warm_up) + self.profile_steps


def trainer_config(settings: BenchmarkSettings, folder: Path):
    """The config of our run; all that goes on between steps is switched off, as the plain loop has none of it."""
    dtype, _ = DTYPES[settings.dtype]
    concepts = [
        {"name": Path(path).name, "path": str(ROOT / path), "text": {"prompt_source": "sample"}}
        for path in settings.concepts
    ]
    component = {"gradient_checkpointing": settings.checkpointing}
    return train_config_from_dict({
        "model_type": "STABLE_DIFFUSION_15", "training_method": "LORA",
        "base_model_name": str(ROOT / settings.model),
        "peft_type": "LORA", "lora_rank": settings.rank, "lora_alpha": float(settings.rank),
        "concepts": concepts, "samples": [],
        "workspace_dir": str(folder / "workspace"), "cache_dir": str(folder / "cache"),
        "output_model_destination": str(folder / "lora.safetensors"),
        "resolution": str(settings.resolution), "batch_size": settings.batch, "aspect_ratio_bucketing": False,
        # an epoch has a batch at least
        "epochs": settings.total_steps,
        "train_device": settings.device,
        "learning_rate": LEARNING_RATE, "learning_rate_scheduler": "CONSTANT", "learning_rate_warmup_steps": 0,
        "clip_grad_norm": CLIP,
        "optimizer": {"optimizer": "ADAMW"},
        "train_dtype": dtype, "weight_dtype": dtype,
        "unet": {"train": True, **component},
        "text_encoder": {"train": settings.text_encoder, "stop_training_after_unit": "NEVER", **component},
        "sample_after_unit": "NEVER", "backup_after_unit": "NEVER", "save_every_unit": "NEVER",
        "tensorboard": False, "validation": False,
    })  # fmt: skip


class OurLoop:
    """The real Trainer, stopped and continued between steps."""

    def __init__(self, settings: BenchmarkSettings, folder: Path) -> None:
        self._commands, self._left = TrainCommands(), 0
        events = TrainEvents([ConsoleProgress(), self._count])
        self.trainer = trainer_module.Trainer(trainer_config(settings, folder), events, self._commands)
        self.trainer._prepare()

    def _count(self, kind: str, values: dict[str, Any]) -> None:
        if kind == "step":
            self._left -= 1
            self._commands.stop = self._left == 0

    def run(self, steps: int) -> None:
        """The next steps of the run."""
        self._left, self._commands.stop = steps, False
        self.trainer._loop()

    def batches(self, steps: int) -> list[PlannedBatch]:
        """The batches of the first steps."""
        planned: list[PlannedBatch] = []
        epoch = 0
        while len(planned) < steps:
            planned += self.trainer.data.plan(epoch)
            epoch += 1
        return planned[:steps]

    def close(self) -> None:
        self.trainer.log.end(RunEnd.FINISHED)


class Contest:
    """The loops, built on one set of images and batches.

    Args:
        settings: what is measured.
        folder: for the caches and logs of our run.
    """

    def __init__(self, settings: BenchmarkSettings, folder: Path) -> None:
        self.settings = settings
        # three progress bars at once would be in each other's way; they are drawn, but not shown
        with contextlib.redirect_stderr(io.StringIO()):
            self.ours = OurLoop(settings, folder)
            trainer = self.ours.trainer
            planned = self.ours.batches(settings.total_steps)
            samples = [sample for batch in planned for sample in batch.samples]
            rows = {sample: row for row, sample in enumerate(dict.fromkeys(samples))}
            self.rows = [[rows[sample] for sample in batch.samples] for batch in planned]
            source = trainer.data.source
            examples = [(source.pixels(s.image, s.image_variation), trainer.data.caption(s)) for s in rows]
            layers = {component: list(adapters.adapters) for component, adapters in trainer.trained.items()}
            peers = (PLAIN, PLAIN_FUSED, PLAIN_UNCACHED) if settings.more_peers else (PLAIN,)
            self.plain = {
                name: PlainLoop(
                    PlainSettings(
                        ROOT / settings.model, layers, settings.rank, float(settings.rank), LEARNING_RATE, CLIP,
                        DTYPES[settings.dtype][1], settings.checkpointing, cached=name != PLAIN_UNCACHED,
                        fused=name == PLAIN_FUSED, device=trainer.device,
                    ),
                    examples,
                )
                for name in peers
            }  # fmt: skip
        self.trained = sum(parameter.numel() for parameter in trainer.parameters)
        theirs = sum(parameter.numel() for parameter in self.plain[PLAIN].parameters)
        assert self.trained == theirs, f"ours trains {self.trained} numbers, the plain loop {theirs}"
        self._done = 0

    @property
    def names(self) -> list[str]:
        return [OURS, *self.plain]

    def block(self, steps: int, order: Sequence[str]) -> dict[str, Seconds]:
        """Seconds per step of each loop over the next batches, in the given order."""
        rows = self._next(steps)
        return {name: self._seconds(name, rows) for name in order}

    def profile(self, steps: int, order: Sequence[str]) -> dict[str, Counter[str]]:
        """Seconds per step of every phase of each loop; `rest` is what no phase accounts for."""
        rows = self._next(steps)
        found = {}
        for name in order:
            with Stopwatch() as stopwatch:
                self._watch(name, stopwatch)
                whole, _ = self._seconds(name, rows)
            phases = Counter({phase: seconds / steps for phase, seconds in stopwatch.seconds.items()})
            found[name] = phases + Counter({"rest": whole - sum(phases.values()), "whole step": whole})
        return found

    def _next(self, steps: int) -> list[list[int]]:
        start = self._done
        self._done += steps
        return self.rows[start : self._done]

    def _seconds(self, name: str, rows: list[list[int]]) -> Seconds:
        with contextlib.redirect_stderr(io.StringIO()):
            self._wait()
            start, start_cpu = time.perf_counter(), time.process_time()
            if name == OURS:
                self.ours.run(len(rows))
            else:
                self.plain[name].run(rows)
            self._wait()
            return (time.perf_counter() - start) / len(rows), (time.process_time() - start_cpu) / len(rows)

    def _wait(self) -> None:
        if self.ours.trainer.device.type == "cuda":
            torch.cuda.synchronize()

    def _watch(self, name: str, stopwatch: Stopwatch) -> None:
        """Has the stopwatch time the phases of a loop's steps."""
        if name == OURS:
            owner = self.ours.trainer
            phases = [
                (owner.feed, "batch", "data"),
                (owner.model, "encode_captions", "text encoder forward"),
                (owner.model, "draw", "noise and timesteps"),
                (owner.model, "predict_drawn", "noise and timesteps"),
                (objective_module, "image_losses", "loss"),
                (owner.log, "step", "TensorBoard"),
                (owner.events, "emit", "progress bar"),
            ]
            unet = owner.model.unet
        else:
            owner = self.plain[name]
            phases = [
                (owner, "collate", "data"),
                (owner, "encode_text", "text encoder forward"),
                (owner, "add_noise", "noise and timesteps"),
                (owner, "loss", "loss"),
                (owner, "show", "progress bar"),
            ]
            unet = owner.unet
        phases += [
            (unet, "forward", "UNet forward"),
            (torch.Tensor, "backward", "backward"),
            (torch.nn.utils, "clip_grad_norm_", "clipping"),
            (owner.optimizer, "step", "optimizer"),
            (owner.optimizer, "zero_grad", "zero_grad"),
        ]
        for phase in phases:
            stopwatch.watch(*phase)

    def frozen_seconds(self, repeats: int) -> float:
        """Median seconds of forward and backward through the UNet without adapters: what no adapter can undercut."""
        trainer = self.ours.trainer
        adapters = trainer.trained["unet"]
        batch = trainer.data.load(self.ours.batches(1)[0])
        latents, hidden = batch.latents.to(trainer.device), self._hidden(batch)
        steps = torch.zeros(len(latents), dtype=torch.long, device=trainer.device)
        adapters.unhook()
        seconds = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            with trainer._autocast():
                predicted = trainer.model.unet(latents.detach().requires_grad_(), steps, hidden, return_dict=False)[0]
            predicted.float().square().mean().backward()
            self._wait()
            seconds.append(time.perf_counter() - start)
        adapters.hook()
        return statistics.median(seconds[2:])

    def _hidden(self, batch: Any) -> Tensor:
        trainer = self.ours.trainer
        with torch.no_grad(), trainer._autocast():
            text = batch.text if batch.text is not None else trainer.model.encode_captions(batch.captions)
        return text["hidden"].to(trainer.device).to(trainer.model.unet.dtype)

    @torch.no_grad()
    def prediction(self, unet: torch.nn.Module) -> Tensor:
        """What a UNet says of the first batch, as if it were half noise."""
        trainer = self.ours.trainer
        batch = trainer.data.load(self.ours.batches(1)[0])
        latents, hidden = batch.latents.to(trainer.device, trainer.model.unet.dtype), self._hidden(batch)
        steps = torch.full((len(latents),), 500, device=trainer.device)
        with trainer._autocast():
            return unet(latents, steps, hidden, return_dict=False)[0]

    def largest_difference(self) -> float:
        """Between the predictions of both UNets with our trained adapters in both: they are the same model."""
        trainer, plain = self.ours.trainer, self.plain[PLAIN]
        layers = trainer.trained["unet"].adapters
        plain.take_weights("unet", {name: (adapter.down, adapter.up) for name, adapter in layers.items()})
        return (self.prediction(trainer.model.unet) - self.prediction(plain.unet)).abs().max().item()

    def close(self) -> None:
        self.ours.close()
        for loop in self.plain.values():
            loop.close()


def measure(settings: BenchmarkSettings, folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the contest.

    Args:
        settings: what is measured.
        folder: for caches and logs.
        say: gets a line for each block.

    Returns:
        What goes into the JSON file.
    """
    contest = Contest(settings, folder)
    names = contest.names
    # each loop comes first, in the middle and last equally often
    turns = itertools.cycle([names[k:] + names[:k] for k in range(len(names))])
    blocks: list[dict[str, Seconds]] = []
    for number in range(-settings.warm_up, settings.blocks):
        seconds = contest.block(settings.steps, next(turns))
        if number >= 0:
            blocks.append(seconds)
        shown = ", ".join(f"{name} {seconds[name][0] * 1e3:.1f} ms" for name in names)
        relative = seconds[OURS][0] / seconds[PLAIN][0]
        say(f"{'warm-up' if number < 0 else f'block {number + 1}'}: {shown}; ours/plain {relative:.3f}")
    chunks = [contest.profile(PROFILE_CHUNK, next(turns)) for _ in range(settings.profile_steps // PROFILE_CHUNK)]
    breakdown = {
        name: {phase: statistics.fmean(chunk[name][phase] for chunk in chunks) for phase in chunks[0][name]}
        for name in (names if chunks else [])
    }
    frozen = contest.frozen_seconds(settings.profile_steps) if settings.profile_steps else None
    difference = contest.largest_difference()
    contest.close()
    return {
        "script": "scripts/benchmark_training.py",
        **environment(contest.ours.trainer.device, ("torch", "diffusers", "transformers", "peft")),
        "settings": asdict(settings),
        "trained_parameters": contest.trained,
        "batch_sizes": dict(Counter(len(rows) for rows in contest.rows)),
        **summary(blocks, 0, ""),
        **summary(blocks, 1, "cpu_"),
        "breakdown_seconds": breakdown,
        "frozen_unet_forward_backward_seconds": frozen,
        "largest_difference_of_predictions": difference,
    }


def summary(blocks: list[dict[str, Seconds]], clock: int, prefix: str) -> dict[str, Any]:
    """Seconds per step and ratios of one of the two clocks."""
    seconds = [{name: both[clock] for name, both in sorted(block.items())} for block in blocks]
    return {
        f"{prefix}seconds_per_step": {name: spread([block[name] for block in seconds]) for name in seconds[0]},
        f"{prefix}ratios": {
            f"{OURS}/{peer}": spread([block[OURS] / block[peer] for block in seconds])
            for peer in seconds[0]
            if peer != OURS
        },
        f"{prefix}blocks": seconds,
    }


def table(result: dict[str, Any]) -> str:
    """The breakdown as a Markdown table, in milliseconds."""
    breakdown = result["breakdown_seconds"]
    if not breakdown:
        return ""
    names = list(breakdown)
    phases = sorted({phase for seconds in breakdown.values() for phase in seconds} - {"whole step", "rest"},
                     key=lambda phase: -breakdown[OURS].get(phase, 0.0))  # fmt: skip
    rows = [f"| ms per step | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for phase in [*phases, "rest", "whole step"]:
        cells = (f"{breakdown[name][phase] * 1e3:.2f}" if phase in breakdown[name] else "" for name in names)
        rows.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(rows)
