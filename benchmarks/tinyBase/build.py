"""Trains the tiny base model from nothing, in three stages, each resumable from its last checkpoint.

1. The autoencoder, on scenes and doodles.
2. The text encoder, by telling a scene's properties from its caption (as CLIP's is trained before Stable Diffusion).
3. The UNet together with the text encoder, on cached latents, with an exponential moving average of the weights.

A resumed training equals an uninterrupted one (`training.py`). Several workers, one thread each, share every batch; on
a CPU that is far faster than several threads on such small layers.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tinyBase import components
from benchmarks.tinyBase.scenes import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    caption,
    draw_scene,
    random_doodle,
    random_scene,
)
from benchmarks.tinyBase.training import (
    Loop,
    cache_latents,
    keyed_generator,
    keyed_random,
    min_snr_loss,
    noised_batch,
    random_scenes,
    run_stage,
    to_pixels,
    tokenize,
    warming_average,
    worker,
)

import torch
import torch.distributed as dist
import torch.nn.functional as F

from diffusers import StableDiffusionPipeline

# the level above a text encoder's weights in files: transformers below 5.6 ask for it, later ones read either way
TEXT_LEVEL = "text_model."


@dataclass
class Recipe:
    """How long and how fast each stage trains; docs/tiny_base.md tells how `models/tiny_sd` was made."""

    seed: int = 0
    vae_steps: int = 2_400
    vae_batch: int = 16
    vae_lr: float = 3e-3
    text_steps: int = 1500
    text_batch: int = 64
    text_lr: float = 1e-3
    scenes: int = 40_000
    unet_steps: int = 7_000
    unet_batch: int = 32
    unet_lr: float = 1e-3
    ema_decay: float = 0.999
    workers: int = 2
    checkpoint_every: int = 500


def _share(recipe: Recipe, batch: int) -> int:
    """This worker's share of a batch."""
    return batch // recipe.workers


def _crop(image, rng: random.Random, side: int = components.RESOLUTION // 2):
    """A random square of the picture that is not plain, if a few tries find one."""
    for _ in range(5):
        x, y = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
        piece = image.crop((x, y, x + side, y + side))
        if sum(high - low for low, high in piece.getextrema()) > 60:
            break
    return piece


def train_vae(recipe: Recipe, directory: Path, device: torch.device) -> torch.nn.Module:
    """Reconstruction (L1 and squared, in pixels and in gradients) plus a light KL term."""
    torch.manual_seed(recipe.seed)
    vae = components.make_vae().to(device)

    def loss_at(step: int) -> torch.Tensor:
        rng = keyed_random(recipe.seed, "vae", step)
        # Mostly crops around edges: four times cheaper than whole pictures, whose larger part is plain. The last
        # fifth is trained on whole ones, as normalisation layers see other statistics there.
        whole = step >= 0.8 * recipe.vae_steps
        count = _share(recipe, recipe.vae_batch) // (2 if whole else 1)
        images = [
            draw_scene(random_scene(rng), rng=rng) if rng.random() < 0.7 else random_doodle(rng) for _ in range(count)
        ]
        x = to_pixels([image if whole else _crop(image, rng) for image in images]).to(device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=keyed_generator(recipe.seed, "vae noise", step)).to(device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + error.square().mean() + 0.5 * edges + 5e-6 * posterior.kl().mean()

    loop = Loop(recipe.vae_steps, recipe.vae_lr, checkpoint_every=recipe.checkpoint_every)
    run_stage("vae", directory, loop, list(vae.parameters()), {"vae": vae}, loss_at)
    return vae.eval().requires_grad_(False)


_PROPERTIES = (
    ("shape", list(SHAPES)),
    ("color", list(COLORS)),
    ("background", list(BACKGROUNDS)),
    ("size", list(SIZES)),
    ("position", list(POSITIONS)),
    ("count", [1, 2, 3]),
)


def train_text_encoder(recipe: Recipe, directory: Path, tokenizer, device: torch.device) -> torch.nn.Module:
    """Linear heads on the last token's embedding name the scene's properties."""
    torch.manual_seed(recipe.seed + 1)
    encoder = components.make_text_encoder(tokenizer).to(device).train()
    heads = torch.nn.ModuleDict(
        {name: torch.nn.Linear(components.EMBEDDING, len(values)) for name, values in _PROPERTIES}
    ).to(device)

    def loss_at(step: int) -> torch.Tensor:
        rng = keyed_random(recipe.seed, "text", step)
        scenes = [random_scene(rng) for _ in range(_share(recipe, recipe.text_batch))]
        tokens = tokenize(tokenizer, [caption(scene, rng) for scene in scenes]).to(device)
        pooled = encoder(tokens).pooler_output
        return sum(
            F.cross_entropy(
                heads[name](pooled),
                torch.tensor([values.index(getattr(scene, name)) for scene in scenes], device=device),
            )
            for name, values in _PROPERTIES
        )

    run_stage(
        "text_encoder",
        directory,
        Loop(recipe.text_steps, recipe.text_lr, checkpoint_every=recipe.checkpoint_every),
        [*encoder.parameters(), *heads.parameters()],
        {"encoder": encoder, "heads": heads},
        loss_at,
    )
    return encoder


@torch.no_grad()
def equalize_latents(vae, center: torch.Tensor, spread: torch.Tensor) -> None:
    """Rewrites the autoencoder so that each latent channel has mean 0 and deviation 1; what it decodes stays the same.

    An autoencoder may keep a detail in a channel of small deviation. Diffusion would see that channel as noise nearly
    to the end, and what noise is left there the decoder would blow up.

    Args:
        vae: changed in place.
        center: `[c]` mean of each channel.
        spread: `[c]` deviation of each channel.
    """
    c = len(center)
    center, spread = center.to(vae.device), spread.to(vae.device)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.bias[:c] = (encode.bias[:c] - center) / spread
    encode.weight[:c] /= spread[:, None, None, None]
    encode.bias[c:] -= 2 * spread.log()
    decode.bias += torch.einsum("oihw,i->o", decode.weight, center)
    decode.weight *= spread[:, None, None]
    vae.register_to_config(scaling_factor=1.0)


def train_unet(recipe: Recipe, directory: Path, vae, encoder, tokenizer, device: torch.device):
    """Noise prediction with min-SNR-5 weights (arXiv 2303.09556); returns the averaged (UNet, text encoder)."""
    scenes = random_scenes(recipe.seed, "scene", _share(recipe, recipe.scenes))
    latents = cache_latents(directory / f"latents-{worker()}.pt", recipe.seed, scenes, vae, device)
    statistics = torch.stack([latents[:, 0].float().mean((0, 2, 3)), latents[:, 0].float().std((0, 2, 3))])
    if dist.is_initialized():
        dist.broadcast(statistics, 0)
    center, spread = statistics
    latents[:, 0] -= center[:, None, None].half()
    latents /= spread[:, None, None].half()
    equalize_latents(vae, center, spread)
    torch.manual_seed(recipe.seed + 2)
    # channels last: convolutions take a tenth less time on a CPU
    unet = components.make_unet().to(device, memory_format=torch.channels_last).train()
    encoder.train().requires_grad_(True)
    trained = torch.nn.ModuleDict({"unet": unet, "text_encoder": encoder})
    average = torch.optim.swa_utils.AveragedModel(trained, multi_avg_fn=warming_average(recipe.ema_decay))
    alphas = components.make_scheduler().alphas_cumprod.to(device)

    def loss_at(step: int) -> torch.Tensor:
        rng, generator = keyed_random(recipe.seed, "unet", step), keyed_generator(recipe.seed, "unet noise", step)
        chosen = [rng.randrange(len(scenes)) for _ in range(_share(recipe, recipe.unet_batch))]
        captions = ["" if rng.random() < 0.1 else caption(scenes[index], rng) for index in chosen]
        noised = noised_batch(latents[chosen], alphas, generator)
        hidden = encoder(tokenize(tokenizer, captions).to(device)).last_hidden_state
        error = unet(noised.sample, noised.timesteps, hidden).sample - noised.noise
        return min_snr_loss(error, noised.alphas)

    run_stage(
        "unet",
        directory,
        Loop(recipe.unet_steps, recipe.unet_lr, checkpoint_every=recipe.checkpoint_every),
        [*unet.parameters(), *encoder.parameters()],
        {"trained": trained, "average": average},
        loss_at,
        lambda step: average.update_parameters(trained),
    )
    return average.module["unet"].eval(), average.module["text_encoder"].eval()


def save_pipeline(output: Path, vae, unet, encoder, tokenizer) -> None:
    """Writes diffusers' directory layout; UNet and autoencoder in half precision, which halves the download.

    The text encoder's weights are named as every version of transformers reads them.
    """
    pipeline = StableDiffusionPipeline(
        vae=vae.cpu().half(),
        text_encoder=encoder.cpu(),
        tokenizer=tokenizer,
        unet=unet.cpu().half(),
        scheduler=components.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(output, safe_serialization=True)
    weights = {f"{TEXT_LEVEL}{name.removeprefix(TEXT_LEVEL)}": tensor for name, tensor in encoder.state_dict().items()}
    encoder.save_pretrained(output / "text_encoder", state_dict=weights)


def build(recipe: Recipe, workspace: Path, output: Path, device: torch.device) -> None:
    """Trains whatever is not trained yet in `workspace` and writes the model to `output`."""
    workspace.mkdir(parents=True, exist_ok=True)
    if recipe.workers == 1:
        _build(0, recipe, workspace, output, device)
    else:
        meeting = workspace / "meeting"
        meeting.unlink(missing_ok=True)
        torch.multiprocessing.spawn(_build, (recipe, workspace, output, device), nprocs=recipe.workers)


def _build(rank: int, recipe: Recipe, workspace: Path, output: Path, device: torch.device) -> None:
    if recipe.workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{(workspace / 'meeting').resolve()}", rank=rank, world_size=recipe.workers
        )
    tokenizer = components.make_tokenizer(workspace / f"tokenizer-{rank}")
    vae = train_vae(recipe, workspace, device)
    encoder = train_text_encoder(recipe, workspace, tokenizer, device)
    unet, encoder = train_unet(recipe, workspace, vae, encoder, tokenizer, device)
    if rank == 0:
        save_pipeline(output, vae, unet, encoder, tokenizer)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
