"""The loop that one would write with diffusers and peft alone. Our own speed is measured against it.

It has what the examples of those libraries have: `add_adapter`, torch's AdamW, DDPM noise, mean squared error,
clipping, a learning-rate schedule, a progress bar. It has nothing of ours, and no log file, checks or backups.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class PlainSettings:
    """What is trained, and how.

    Attributes:
        model: folder of a Stable Diffusion pipeline in diffusers' layout.
        layers: `unet` or `text_encoder` -> names of the layers that get an adapter; a component that is not there stays
            frozen.
        rank, alpha: of every adapter.
        learning_rate: constant.
        clip: largest norm of the gradient.
        dtype: of the frozen weights, and of autocast if it is not float32; adapters are float32.
        checkpointing: recomputes activations in the backward pass.
        cached: encodes images and captions once and keeps them in memory; otherwise at each step, as the examples do.
        fused: torch's fused AdamW instead of the one that it takes by itself.
        device: where it runs.
    """

    model: Path
    layers: Mapping[str, Sequence[str]]
    rank: int
    alpha: float
    learning_rate: float
    clip: float
    dtype: torch.dtype
    checkpointing: bool
    cached: bool
    fused: bool
    device: torch.device


class PlainLoop:
    """Trains on examples that it holds in memory, decoded.

    Args:
        settings: what is trained, and how.
        examples: (pixels `[3, h, w]` in -1 … 1, caption) of each image.
    """

    def __init__(self, settings: PlainSettings, examples: Sequence[tuple[Tensor, str]]) -> None:
        self.settings = settings
        self._load()
        self._adapt()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.bar = tqdm(desc="plain", mininterval=0.5)
        self._prepare_examples(examples)

    def _load(self) -> None:
        settings = self.settings
        source = str(settings.model)
        self.noising = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        self.vae = AutoencoderKL.from_pretrained(source, subfolder="vae")
        self.text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder")
        self.unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
        for component in (self.vae, self.text_encoder, self.unet):
            component.to(settings.device, settings.dtype).requires_grad_(False)

    def _adapt(self) -> None:
        settings = self.settings
        self.parameters: list[torch.nn.Parameter] = []
        for name, layers in settings.layers.items():
            component = getattr(self, name)
            component.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(layers)))
            component.train()
            if settings.checkpointing:
                enable = (
                    getattr(component, "enable_gradient_checkpointing", None) or component.gradient_checkpointing_enable
                )
                enable()
            trained = [parameter for parameter in component.parameters() if parameter.requires_grad]
            for parameter in trained:
                parameter.data = parameter.data.float()
            self.parameters += trained
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=1e-2, fused=settings.fused or None
        )

    @torch.no_grad()
    def _prepare_examples(self, examples: Sequence[tuple[Tensor, str]]) -> None:
        device, cached = self.settings.device, self.settings.cached
        self.pixels = [pixels for pixels, _ in examples]
        self.tokens = [self._tokenize(caption) for _, caption in examples]
        self.latents = [self._encode_images(pixels[None].to(device))[0] for pixels in self.pixels] if cached else None
        text_cached = cached and "text_encoder" not in self.settings.layers
        self.hidden = [self.encode_text(tokens[None].to(device))[0] for tokens in self.tokens] if text_cached else None

    def _tokenize(self, caption: str) -> Tensor:
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            caption, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids[0]

    @torch.no_grad()
    def _encode_images(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.sample() * self.vae.config.scaling_factor

    def encode_text(self, tokens: Tensor) -> Tensor:
        """`[b, tokens]` -> `[b, tokens, d]`."""
        return self.text_encoder(tokens, return_dict=False)[0]

    def run(self, batches: Sequence[Sequence[int]]) -> None:
        """One step for each batch of indices into the examples."""
        for rows in batches:
            self._step(rows)

    def _step(self, rows: Sequence[int]) -> None:
        with self._autocast():
            latents, hidden = self.collate(rows)
            noisy, target, timesteps = self.add_noise(latents)
            predicted = self.unet(noisy, timesteps, hidden, return_dict=False)[0]
        loss = self.loss(predicted, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.show(loss)

    def _autocast(self) -> contextlib.AbstractContextManager:
        settings = self.settings
        if settings.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(settings.device.type, settings.dtype)

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents `[b, c, h', w']` and encoded captions `[b, tokens, d]` of some examples."""
        device = self.settings.device
        if self.latents is not None:
            latents = torch.stack([self.latents[row] for row in rows])
        else:
            latents = self._encode_images(torch.stack([self.pixels[row] for row in rows]).to(device))
        if self.hidden is not None:
            return latents, torch.stack([self.hidden[row] for row in rows])
        tokens = torch.stack([self.tokens[row] for row in rows]).to(device)
        if "text_encoder" in self.settings.layers:
            return latents, self.encode_text(tokens)
        with torch.no_grad():
            return latents, self.encode_text(tokens)

    def add_noise(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, what the model should say of them, and the timesteps `[b]`."""
        noise = torch.randn_like(latents)
        steps = self.noising.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=latents.device)
        noisy = self.noising.add_noise(latents, noise, timesteps)
        if self.noising.config.prediction_type == "v_prediction":
            return noisy, self.noising.get_velocity(latents, noise, timesteps), timesteps
        return noisy, noise, timesteps

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(predicted.float(), target.float())

    def show(self, loss: Tensor) -> None:
        """Moves the progress bar."""
        self.bar.update(1)
        self.bar.set_postfix(loss=loss.item(), refresh=False)

    @torch.no_grad()
    def take_weights(self, component: str, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Copies (down, up) of each layer into the adapters of a component, to compare predictions."""
        for name, (down, up) in layers.items():
            layer = getattr(self, component).get_submodule(name)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)

    def close(self) -> None:
        """Ends the progress bar."""
        self.bar.close()
