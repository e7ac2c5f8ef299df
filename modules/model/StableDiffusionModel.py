"""Stable Diffusion 1.5 and 2.x, and every model of the same parts (one CLIP text encoder, UNet, KL autoencoder)."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from modules.model.BaseModel import BaseModel, Prediction
from modules.model.diffusion_noise import draw_noise, draw_timesteps, offset_coefficients, zero_terminal_snr
from modules.model.ModelSource import ModelSource
from modules.model.single_file import SingleFileSource
from modules.model.unet_keys import unet_adapter_naming
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

import diffusers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

# name of the diffusers class, and options that make it the sampler of that name
SCHEDULERS: dict[NoiseScheduler, tuple[str, dict[str, object]]] = {
    NoiseScheduler.DDIM: ("DDIMScheduler", {}),
    NoiseScheduler.EULER: ("EulerDiscreteScheduler", {}),
    NoiseScheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    NoiseScheduler.DPMPP: ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    NoiseScheduler.DPMPP_SDE: ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    NoiseScheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    NoiseScheduler.EULER_KARRAS: ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    NoiseScheduler.DPMPP_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    NoiseScheduler.DPMPP_SDE_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    NoiseScheduler.UNIPC_KARRAS: ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}
# what model managers call the architecture, and kohya the base version
FILE_NAMES = {
    ModelType.STABLE_DIFFUSION_15: ("stable-diffusion-v1", "sd_v1"),
    ModelType.STABLE_DIFFUSION_20_BASE: ("stable-diffusion-v2-512", "sd_v2"),
    ModelType.STABLE_DIFFUSION_21_BASE: ("stable-diffusion-v2-512", "sd_v2"),
    ModelType.STABLE_DIFFUSION_20: ("stable-diffusion-v2-768-v", "sd_v2_v"),
    ModelType.STABLE_DIFFUSION_21: ("stable-diffusion-v2-768-v", "sd_v2_v"),
}
# what samples are drawn without: prompts come encoded
LEFT_OUT = {
    "text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None, "image_encoder": None
}  # fmt: skip


class StableDiffusionModel(BaseModel):
    """UNet with noise or velocity prediction on a fixed variance-preserving schedule."""

    model_types = tuple(FILE_NAMES)
    modules = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}
    tokenizers = {"tokenizer": CLIPTokenizer}
    trainable_parts = ("unet", "text_encoder")
    layer_filter_presets = {
        "full": [],
        "attn-mlp": ["attentions"],
        "attn-only": ["attn"],
    }
    sample_defaults = {"width": 512, "height": 512}

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.tokenizer = source.tokenizer("tokenizer")
        self.scheduler_config = self._scheduler_config(source.scheduler_config())
        scheduler = diffusers.DDPMScheduler.from_config(self.scheduler_config)
        alphas = scheduler.alphas_cumprod
        if config.rescale_noise_scheduler_to_zero_terminal_snr:
            alphas = zero_terminal_snr(alphas)
        self.alphas_cumprod = alphas
        self.velocity = self.scheduler_config["prediction_type"] == "v_prediction"
        # of the schedule as it was: on one that ends without signal all of the offset would go to the last step
        self.offset_psi = offset_coefficients(scheduler.alphas_cumprod.clamp(min=1e-8))

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> SingleFileSource:
        return SingleFileSource(path, config.model_type)

    @property
    def unet(self) -> nn.Module:
        return self.components["unet"]

    @property
    def text_encoder(self) -> nn.Module:
        return self.components["text_encoder"]

    @property
    def vae(self) -> nn.Module:
        return self.components["vae"]

    def _scheduler_config(self, loaded: Mapping[str, object]) -> dict[str, object]:
        config = dict(loaded)
        # some checkpoints leave it out, and noise is what it then means
        config.setdefault("prediction_type", "epsilon")
        # at the last step of such a schedule there is nothing but noise, which says nothing about the image
        if self.config.force_v_prediction or self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            config["prediction_type"] = "v_prediction"
        if self.config.force_epsilon_prediction:
            if self.config.rescale_noise_scheduler_to_zero_terminal_snr:
                raise UserError(
                    "force_epsilon_prediction: can't be on together with rescale_noise_scheduler_to_zero_terminal_snr, "
                    "which needs v-prediction. Switch one of them off."
                )
            config["prediction_type"] = "epsilon"
        if config["prediction_type"] not in ("epsilon", "v_prediction"):
            raise UserError(
                f"The base model's scheduler predicts {config['prediction_type']!r}; expected epsilon or v_prediction. "
                "Set `force_epsilon_prediction` or `force_v_prediction` if you know better."
            )
        return config

    @property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.layers_of("vae").config.block_out_channels) - 1)

    @property
    def image_grid(self) -> int:
        return self.vae_factor * 2 ** (len(self.layers_of("unet").config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(device=self.device, dtype=self.vae.dtype)
        return self.vae.encode(pixels).latent_dist.mean.float()

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        with nullcontext() if self.text_encoder_trained else torch.no_grad():
            own = self.config
            return {"hidden": self._encode(captions, own.text_encoder_layer_skip, own.text_encoder_sequence_length)}

    def _encode(self, captions: list[str], skip: int, length: int | None) -> Tensor:
        # the encoder has no positions beyond its own; the option's default is that of families with longer captions
        most = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        length = min(length or most, most)
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids.to(self.device)
        if not skip:
            return self.text_encoder(tokens).last_hidden_state.float()
        states = self.text_encoder(tokens, output_hidden_states=True).hidden_states
        if skip >= len(states):
            raise UserError(
                f"text_encoder_layer_skip: found {skip}, but the text encoder has only {len(states) - 1} layers."
            )
        inner = getattr(self.text_encoder, "text_model", self.text_encoder)
        return inner.final_layer_norm(states[-1 - skip]).float()

    def image_fingerprint(self) -> str:
        return f"{self.weights_hash('vae')} {self.vae.dtype}"

    def text_fingerprint(self) -> str:
        settings = [self.config.text_encoder_layer_skip, self.config.text_encoder_sequence_length]
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return f"{self.weights_hash('text_encoder')} {self.text_encoder.dtype} {settings} {hash_text(vocabulary)}"

    def predict(self, latents: Tensor, conditions: Mapping[str, Tensor], generator: torch.Generator) -> Prediction:
        config = self.config
        timesteps = draw_timesteps(config, len(latents), len(self.alphas_cumprod), generator)
        noise, mixed = draw_noise(config, latents.shape, generator, self.offset_psi[timesteps])
        alphas = self.alphas_cumprod[timesteps]
        signal, spread = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
        device = self.device
        clean = latents.to(device, non_blocking=True) * self.vae.config.scaling_factor
        noise, mixed, signal, spread = (t.to(device, non_blocking=True) for t in (noise, mixed, signal, spread))
        noisy = signal * clean + spread * mixed
        target = signal * noise - spread * clean if self.velocity else noise
        # of one weight: diffusers' own `dtype` searches all modules for hooks, at every call
        weight_dtype = self.unet.conv_in.weight.dtype
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight_dtype
        predicted = self.unet(noisy.to(dtype), timesteps.to(device), conditions["hidden"].to(dtype), return_dict=False)[
            0
        ]
        return Prediction(predicted, target, timesteps, alphas / (1 - alphas).clamp(min=1e-12), self.velocity)

    def pipeline(self, scheduler: NoiseScheduler = NoiseScheduler.DDIM, last_timestep: bool = False):
        """A diffusers pipeline around these very components, with the sampler of that name."""
        name, options = SCHEDULERS[scheduler]
        if last_timestep or self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            options = {**options, "timestep_spacing": "trailing"}
        if self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            options = {**options, "rescale_betas_zero_snr": True}
        built = getattr(diffusers, name).from_config(self.scheduler_config, **options)
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            unet=self.unet,
            scheduler=built,
            **LEFT_OUT,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        # where a sample says nothing of its own, it reads prompts as the training reads captions
        skip = sample.text_encoder_1_layer_skip or self.config.text_encoder_layer_skip
        length = sample.text_encoder_1_sequence_length or self.config.text_encoder_sequence_length
        hidden, negative = self._encode([sample.prompt, sample.negative_prompt], skip, length).split(1)
        return {"hidden": hidden, "negative": negative}

    @torch.no_grad()
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        if sample.noise_scheduler not in SCHEDULERS:
            raise UserError(
                f"noise_scheduler: found {sample.noise_scheduler}, expected one of {', '.join(map(str, SCHEDULERS))}."
            )
        if sample.sample_inpainting:
            raise UserError("sample_inpainting: not supported by this model family yet; set it to false.")
        grid = self.image_grid
        prompts = self.prompts(sample)

        def report(pipeline, step: int, timestep, tensors: dict) -> dict:
            on_step(step + 1, sample.diffusion_steps)
            return tensors

        return self.pipeline(sample.noise_scheduler, sample.force_last_timestep)(
            prompt_embeds=prompts["hidden"].to(self.unet.dtype),
            negative_prompt_embeds=prompts["negative"].to(self.unet.dtype),
            height=max(grid, sample.height // grid * grid),
            width=max(grid, sample.width // grid * grid),
            num_inference_steps=sample.diffusion_steps,
            guidance_scale=sample.cfg_scale,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=report,
        ).images[0]

    def set_gradient_checkpointing(self, part: str, enabled: bool) -> None:
        module = self.components[part]
        if not enabled:
            return
        enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
        enable()
        # diffusers and transformers checkpoint only in training mode; nothing here has dropout of its own
        module.train()

    def adapter_naming(self) -> AdapterNaming:
        """How the layers of UNet and text encoder are called in adapter files."""
        return unet_adapter_naming(self.layers_of("unet"), {"text_encoder": self.layers_of("text_encoder")})

    def file_description(self) -> dict[str, str]:
        architecture, base_version = FILE_NAMES[self.config.model_type]
        prediction = "v" if self.velocity else "epsilon"
        return {"architecture": architecture, "base_version": base_version, "prediction_type": prediction}


def hash_text(text: str) -> str:
    """Short hash of a text for cache keys."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
