"""What every training of the tiny bases shares: keyed randomness, cached latents, noised batches and the loop.

A random draw is keyed by (seed, stage, step, worker), and the loop goes on from its last checkpoint: a resumed training
equals an uninterrupted one. Axes: `n` scenes, `b` batch, `c` latent channels, `h` and `w` latent height and width.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tinyBase import components
from benchmarks.tinyBase.scenes import Scene, draw_scene, random_scene
from modules.util.config.whole_file import replacing

import torch
import torch.distributed as dist

import numpy as np
from tqdm import tqdm

ENCODE_BATCH = 64


@dataclass(frozen=True)
class Loop:
    """How a stage is trained.

    Args:
        steps: optimizer steps.
        lr: peak learning rate of AdamW. It warms up, then decays with a cosine to 2 % of the peak.
        warmup: steps of linear warm-up, at least 1.
        checkpoint_every: steps from one checkpoint to the next; the last step has one, too.
    """

    steps: int
    lr: float
    warmup: int = 200
    checkpoint_every: int = 500


@dataclass(frozen=True)
class Noised:
    """A noised batch: `sample` and `noise` `[b, c, h, w]`, `timesteps` and `alphas` (cumulative) `[b]`."""

    sample: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    alphas: torch.Tensor


def worker() -> int:
    """This process's rank, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def keyed_random(seed: int, stage: str, step: int) -> random.Random:
    """The random numbers of one step of a stage."""
    return random.Random(f"{seed} {stage} {step} {worker()}")


def keyed_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """The same for tensors, on the CPU."""
    return torch.Generator().manual_seed(keyed_random(seed, stage, step).getrandbits(63))


def to_pixels(images: list) -> torch.Tensor:
    """RGB pictures of one size as `[image, 3, height, width]` in -1..1."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


def tokenize(tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids `[caption, token]`, padded to the text encoder's length."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=components.TOKENS, return_tensors="pt"
    ).input_ids


def _average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Each worker's gradient is of its own share of the batch."""
    if dist.is_initialized():
        gradients = [parameter.grad for parameter in parameters]
        flat = torch._utils._flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(mean)


def _schedule(optimizer: torch.optim.Optimizer, loop: Loop) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / loop.steps))
        return min(1, (step + 1) / loop.warmup) * (0.02 + 0.98 * cosine)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def run_stage(
    name: str,
    directory: Path,
    loop: Loop,
    parameters: list[torch.nn.Parameter],
    modules: dict[str, torch.nn.Module],
    loss_at: Callable[[int], torch.Tensor],
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Trains with AdamW from the last checkpoint, if there is one, to the last step.

    Args:
        name: the checkpoint is `<directory>/<name>.pt`.
        directory: exists.
        loop: steps, learning rate and schedule.
        parameters: what the optimizer changes.
        modules: what a checkpoint holds, beside the optimizer and the schedule.
        loss_at: the loss of a step, counted from 0.
        after_step: called behind each optimizer step.
    """
    optimizer = torch.optim.AdamW(parameters, lr=loop.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    schedule = _schedule(optimizer, loop)
    file, first = directory / f"{name}.pt", 0
    if file.exists():
        state = torch.load(file, weights_only=True, map_location="cpu")
        first = state["step"]
        for key, module in modules.items():
            module.load_state_dict(state[key])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    smooth = None
    progress = tqdm(
        range(first, loop.steps), initial=first, total=loop.steps, desc=name, mininterval=2, disable=worker() > 0
    )
    for step in progress:
        loss = loss_at(step)
        loss.backward()
        _average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(step)
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        progress.set_postfix(loss=f"{smooth:.4f}")
        if ((step + 1) % loop.checkpoint_every == 0 or step + 1 == loop.steps) and worker() == 0:
            state = {key: module.state_dict() for key, module in modules.items()}
            state.update(step=step + 1, optimizer=optimizer.state_dict(), schedule=schedule.state_dict())
            with replacing(file, ".tmp") as written:
                torch.save(state, written)


def random_scenes(seed: int, stage: str, number: int) -> list[Scene]:
    """`number` scenes, this worker's."""
    return [random_scene(keyed_random(seed, stage, index)) for index in range(number)]


def cache_latents(file: Path, seed: int, scenes: list[Scene], vae, device: torch.device) -> torch.Tensor:
    """The encoded scenes (`encode_scenes`), read from `file` if it holds as many."""
    if file.exists():
        latents = torch.load(file, weights_only=True)
        if len(latents) == len(scenes):
            return latents
    latents = encode_scenes(seed, "drawing", scenes, vae, device)
    torch.save(latents, file)
    return latents


@torch.no_grad()
def encode_scenes(seed: int, stage: str, scenes: list[Scene], vae, device: torch.device) -> torch.Tensor:
    """Draws the scenes, each a little varied, and encodes them: means and deviations `[n, 2, c, h, w]`, float16."""
    chunks = []
    for start in tqdm(range(0, len(scenes), ENCODE_BATCH), desc="latents", disable=worker() > 0):
        images = [
            draw_scene(scene, rng=keyed_random(seed, stage, start + k))
            for k, scene in enumerate(scenes[start : start + ENCODE_BATCH])
        ]
        posterior = vae.encode(to_pixels(images).to(device)).latent_dist
        chunks.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
    return torch.cat(chunks)


def noised_batch(latents: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator) -> Noised:
    """Draws latents from their posteriors and noises them at stratified timesteps.

    Every batch covers the whole range of timesteps, which makes the loss far less noisy.

    Args:
        latents: `[b, 2, c, h, w]` means and deviations, on the CPU, in the scale that the UNet sees.
        alphas: `[t]` cumulative products of the schedule, on the device that trains.
        generator: on the CPU.
    """
    mean, std = latents.float().unbind(1)
    clean = (mean + std * torch.randn(mean.shape, generator=generator)).to(alphas.device)
    noise = torch.randn(mean.shape, generator=generator).to(alphas.device)
    spread = (torch.arange(len(mean)) + torch.rand(len(mean), generator=generator)) / len(mean)
    timesteps = (spread * len(alphas)).long().to(alphas.device)
    a = alphas[timesteps]
    signal, amount = a.sqrt()[:, None, None, None], (1 - a).sqrt()[:, None, None, None]
    return Noised(signal * clean + amount * noise, noise, timesteps, a)


def min_snr_loss(error: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Mean squared `error` `[b, c, h, w]` of a noise prediction with min-SNR-5 weights (arXiv 2303.09556)."""
    snr = alphas / (1 - alphas)
    return ((snr.clamp(max=5) / snr) * error.square().mean((1, 2, 3))).mean()


def warming_average(decay: float):
    """EMA whose decay rises to `decay` as (1 + n)/(10 + n), so that the untrained weights are soon forgotten."""

    @torch.no_grad()
    def update(averages: list, current: list, count) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update
