"""Variants of the tiny base whose UNet is narrower or wider, distilled from its UNet.

All other components are the base's own files. The target is the base's noise prediction under the same caption,
which is far less noisy than true noise: a few thousand steps do.
Axes: `n` scenes, `t` tokens, `e` embedding, and those of `training.py`.
"""

import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tinyBase import components
from benchmarks.tinyBase.sample import load_pipeline
from benchmarks.tinyBase.scenes import Scene, caption
from benchmarks.tinyBase.training import (
    Loop,
    cache_latents,
    encode_scenes,
    keyed_generator,
    keyed_random,
    min_snr_loss,
    noised_batch,
    random_scenes,
    run_stage,
    tokenize,
    warming_average,
)
from modules.util.UserError import UserError

import torch

from diffusers import StableDiffusionPipeline, UNet2DConditionModel

EMPTY_CAPTIONS = 0.1
HELD_OUT_SCENES, HELD_OUT_BATCH = 512, 64


@dataclass(frozen=True)
class Width:
    """A UNet's width and how it is trained.

    Args:
        channels: of the three levels; the base has (48, 96, 128).
        norm_groups: groups of each normalisation; three channels a group in the outermost level, as the base has.
        steps: optimizer steps, at least 1.
        lr: peak learning rate of AdamW.
    """

    channels: tuple[int, int, int]
    norm_groups: int
    steps: int
    lr: float


WIDTHS: dict[str, Width] = {
    "quarter": Width((12, 24, 32), 4, steps=2_000, lr=3e-3),
    "half": Width((24, 48, 64), 8, steps=2_000, lr=2e-3),
    "double": Width((96, 192, 256), 32, steps=1_200, lr=1e-3),
}


@dataclass(frozen=True)
class Distillation:
    """What all widths share. `scenes` are cached; an average of the weights with `ema_decay` is what is written."""

    seed: int = 0
    scenes: int = 10_000
    batch: int = 16
    ema_decay: float = 0.999
    warmup: int = 100
    checkpoint_every: int = 200


@dataclass(frozen=True)
class Captioned:
    """Encoded scenes: latents (means, deviations) `[n, 2, c, h, w]`, captions `[n, t, e]`, the empty one `[t, e]`."""

    latents: torch.Tensor
    embeddings: torch.Tensor
    empty: torch.Tensor


@dataclass(frozen=True)
class Quality:
    """Losses on held-out drawings, equal draws for both UNets.

    Args:
        loss, base_loss: mean squared error against the true noise, all timesteps alike; 1 for a prediction of 0.
        weighted_loss, base_weighted_loss: the same with min-SNR-5 weights.
        distance: mean squared difference of the two predictions.
    """

    loss: float
    base_loss: float
    weighted_loss: float
    base_weighted_loss: float
    distance: float


@torch.no_grad()
def _embed(pipeline: StableDiffusionPipeline, captions: list[str]) -> torch.Tensor:
    """Embeddings `[n, t, e]` of the frozen text encoder, on the CPU."""
    chunks = [captions[start : start + 256] for start in range(0, len(captions), 256)]
    device = pipeline.text_encoder.device
    return torch.cat(
        [
            pipeline.text_encoder(tokenize(pipeline.tokenizer, chunk).to(device)).last_hidden_state.cpu()
            for chunk in chunks
        ]
    )


def _captioned(pipeline: StableDiffusionPipeline, latents: torch.Tensor, scenes: list[Scene], rng: random.Random):
    embeddings = _embed(pipeline, [caption(scene, rng) for scene in scenes])
    return Captioned(latents * pipeline.vae.config.scaling_factor, embeddings, _embed(pipeline, [""])[0])


def training_scenes(
    pipeline: StableDiffusionPipeline, recipe: Distillation, model: Path, workspace: Path, device: torch.device
) -> Captioned:
    """The scenes that are trained on, one caption each; latents are kept in `workspace` for the next width."""
    scenes = random_scenes(recipe.seed, "scene", recipe.scenes)
    key = f"{recipe.seed}-{recipe.scenes}-{_digest(model / 'vae')}"
    latents = cache_latents(workspace / f"latents-{key}.pt", recipe.seed, scenes, pipeline.vae, device)
    return _captioned(pipeline, latents, scenes, keyed_random(recipe.seed, "captions", 0))


def _digest(folder: Path) -> str:
    """A short hash of the files in a folder of a pipeline."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _check_settings(file: Path, settings: dict) -> None:
    """A checkpoint goes on only with the settings that it began with."""
    if file.exists():
        begun = json.loads(file.read_text(encoding="utf-8"))
        differing = [
            f"{name} {begun.get(name)}, now {value}" for name, value in settings.items() if begun.get(name) != value
        ]
        if differing:
            raise UserError(
                f"{file.with_suffix('.pt')}: was begun with other settings ({'; '.join(differing)}); "
                "ask for those again, name another --workspace, or delete this file and its .json"
            )
    file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def distill(
    name: str,
    width: Width,
    recipe: Distillation,
    teacher: UNet2DConditionModel,
    data: Captioned,
    alphas: torch.Tensor,
    workspace: Path,
) -> UNet2DConditionModel:
    """Trains a UNet of `width` towards the teacher's noise prediction, min-SNR-5 weights; returns the averaged one.

    Args:
        name: of the checkpoint in `workspace`.
        teacher: frozen, on the device that trains.
        alphas: cumulative products of the noise schedule, on that device.
    """
    device = alphas.device
    torch.manual_seed(keyed_random(recipe.seed, f"{name} weights", 0).getrandbits(63))
    student = components.make_unet(width.channels, width.norm_groups)
    student = student.to(device, memory_format=torch.channels_last).train()
    average = torch.optim.swa_utils.AveragedModel(student, multi_avg_fn=warming_average(recipe.ema_decay))

    def loss_at(step: int) -> torch.Tensor:
        rng = keyed_random(recipe.seed, name, step)
        chosen = [rng.randrange(len(data.latents)) for _ in range(recipe.batch)]
        noised = noised_batch(data.latents[chosen], alphas, keyed_generator(recipe.seed, f"{name} noise", step))
        hidden = data.embeddings[chosen]
        hidden[[rng.random() < EMPTY_CAPTIONS for _ in chosen]] = data.empty
        inputs = noised.sample, noised.timesteps, hidden.to(device)
        with torch.no_grad():
            target = teacher(*inputs).sample
        return min_snr_loss(student(*inputs).sample - target, noised.alphas)

    run_stage(
        name,
        workspace,
        Loop(width.steps, width.lr, recipe.warmup, recipe.checkpoint_every),
        list(student.parameters()),
        {"student": student, "average": average},
        loss_at,
        lambda step: average.update_parameters(student),
    )
    return average.module.eval().requires_grad_(False)


@torch.no_grad()
def held_out_quality(
    pipeline: StableDiffusionPipeline, unet: UNet2DConditionModel, seed: int = 0, scenes: int = HELD_OUT_SCENES
) -> Quality:
    """Compares a UNet with the pipeline's on drawings that were not trained on; one draw of noise each."""
    device = pipeline.unet.device
    held_out = random_scenes(seed, "held-out scene", scenes)
    latents = encode_scenes(seed, "held-out drawing", held_out, pipeline.vae, device)
    data = _captioned(pipeline, latents, held_out, keyed_random(seed, "held-out captions", 0))
    alphas = pipeline.scheduler.alphas_cumprod.to(device)
    totals = torch.zeros(5, dtype=torch.float64)
    for start in range(0, scenes, HELD_OUT_BATCH):
        chunk = slice(start, min(start + HELD_OUT_BATCH, scenes))
        noised = noised_batch(data.latents[chunk], alphas, keyed_generator(seed, "held-out noise", start))
        inputs = noised.sample, noised.timesteps, data.embeddings[chunk].to(device)
        ours, base = unet(*inputs).sample, pipeline.unet(*inputs).sample
        means = [
            (ours - noised.noise).square().mean(),
            (base - noised.noise).square().mean(),
            min_snr_loss(ours - noised.noise, noised.alphas),
            min_snr_loss(base - noised.noise, noised.alphas),
            (ours - base).square().mean(),
        ]
        totals += torch.stack(means).double().cpu() * (chunk.stop - chunk.start)
    return Quality(*(totals / scenes).tolist())


def write_variant(model: Path, unet: UNet2DConditionModel, output: Path) -> None:
    """Writes the base's files to `output`, with another UNet in half precision."""
    shutil.copytree(model, output, ignore=shutil.ignore_patterns("unet"), dirs_exist_ok=True)
    unet.cpu().half().save_pretrained(output / "unet", safe_serialization=True)


def make_width(
    name: str,
    width: Width,
    recipe: Distillation,
    model: Path,
    workspace: Path,
    output: Path,
    device: torch.device,
    held_out: int = HELD_OUT_SCENES,
) -> Quality:
    """Trains what is not trained yet, writes the variant as a folder in diffusers' layout and measures it.

    Args:
        name: of the checkpoint in `workspace`, and the key of its random numbers.
        model: the base, a folder in diffusers' layout.
        workspace: for checkpoints and latents; made if it is missing.
        output: the folder to write.
        held_out: number of drawings to measure it on.

    Raises:
        UserError: there is no base in `model`, or the checkpoint was begun with other settings.
    """
    pipeline = load_pipeline(model, str(device))
    for component in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        component.eval().requires_grad_(False)
    pipeline.unet.to(memory_format=torch.channels_last)
    workspace.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps({**asdict(width), **asdict(recipe), "model": _digest(model)}))
    _check_settings(workspace / f"{name}.json", settings)
    data = training_scenes(pipeline, recipe, model, workspace, device)
    alphas = pipeline.scheduler.alphas_cumprod.to(device)
    unet = distill(name, width, recipe, pipeline.unet, data, alphas, workspace)
    write_variant(model, unet, output)
    # what is measured is what was written, rounded to half precision
    return held_out_quality(pipeline, unet.float().to(device), recipe.seed, held_out)
