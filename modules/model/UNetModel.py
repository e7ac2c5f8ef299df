"""What the families with a UNet, CLIP text encoders and a KL autoencoder share."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from modules.model.ClipTexts import ClipTexts, check_skip
from modules.model.diffusion_noise import draw_noise, draw_timesteps, offset_coefficients, zero_terminal_snr
from modules.model.Draw import Draw, per_image
from modules.model.ldm_checkpoint import ldm_checkpoint
from modules.model.ModelSource import ModelSource, empty_module
from modules.model.single_file import SD1, SD2, SDXL, STANDARD, SingleFileSource, load_component
from modules.model.unet_keys import unet_adapter_naming
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.config.errors import Problem, Remedy
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LossWeight import LossWeight
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.to_device import to_device
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

import diffusers
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig

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


class UNetModel(ClipTexts):
    """Noise or velocity prediction on a fixed variance-preserving schedule.

    Attributes:
        scheduler_config: of the base model's scheduler, with the prediction type of this run.
        alphas_cumprod: `[t]`, ᾱ of the training's schedule.
        velocity: whether the UNet predicts the velocity.
    """

    trainable_components = ("unet", "text_encoder")
    layer_filter_presets = {
        "full": [],
        "attn-mlp": ["attentions"],
        "attn-only": ["attn"],
    }
    file_formats = (ModelFormat.ORIGINAL_SINGLE_FILE,)
    # group norms do not
    mixes_half_formats = False
    name_layers = staticmethod(unet_adapter_naming)
    # last layers of its text encoders that it never uses
    unused_layers: ClassVar[int] = 0
    # what model managers call the architecture, and kohya the base version
    file_names: ClassVar[Mapping[ModelType, tuple[str, str]]] = {}

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
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
    def check_config(cls, config: TrainConfig) -> list[Problem]:
        found = super().check_config(config)
        if config.force_epsilon_prediction and config.rescale_noise_scheduler_to_zero_terminal_snr:
            text = (
                "can't be on together with rescale_noise_scheduler_to_zero_terminal_snr, which needs v-prediction. "
                "Switch one of them off"
            )
            keys = ("force_epsilon_prediction", "rescale_noise_scheduler_to_zero_terminal_snr")
            found.append(Problem(keys[0], text, tuple(Remedy.of({key: False}) for key in keys)))
        if config.loss_weight_fn == LossWeight.SIGMA:
            text = f"{config.loss_weight_fn} has no meaning for {config.model_type}; it is for flow matching"
            found.append(Problem("loss_weight_fn", text, (Remedy.of({"loss_weight_fn": "CONSTANT"}),)))
        return found

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        unet = empty_module(UNet2DConditionModel, {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1})
        encoders = {component: kind for component, kind in cls.modules.items() if component.startswith("text_encoder")}
        small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        return unet_adapter_naming(
            unet, {component: empty_module(kind, CLIPTextConfig(**small)) for component, kind in encoders.items()}
        )

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> SingleFileSource:
        elsewhere = [component for component in cls.modules if getattr(config, component).model_name]
        return SingleFileSource(path, config.model_type, elsewhere)

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        try:
            return load_component(path, component, self.source.empty(component), dtype)
        except UserError as error:
            raise UserError(f"{component}.model_name: {error}") from error

    def _load_component(self, name: str) -> nn.Module:
        module = super()._load_component(name)
        if name == "vae" and module.dtype == torch.float16 and module.config.force_upcast:
            # its activations overflow, says its own config
            module.float()
        return module

    def check_layers(self) -> None:
        super().check_layers()
        self._check_channels()
        for component in self.tokenizer_of:
            layers = self.layers_of(component).config.num_hidden_layers
            check_skip(component, layers, getattr(self.config, f"{component}_layer_skip"), self.unused_layers)

    def unet_channels(self, latents: int) -> int:
        """Channels that the UNet reads, if latents have so many."""
        return latents

    def _check_channels(self) -> None:
        found = self.layers_of("unet").config.in_channels
        expected = self.unet_channels(self.layers_of("vae").config.latent_channels)
        if found != expected:
            raise UserError(
                f"base_model_name: the UNet of {self.source.name} reads {found} channels, expected {expected} for "
                f"{self.config.model_type}. Models that fill masks read 9, and have a model_type that ends with "
                "_INPAINTING; others read 4."
            )

    @property
    def unet(self) -> nn.Module:
        return self.components["unet"]

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

    @cached_property
    def latent_scale(self) -> float:
        """What latents are multiplied with to have about unit variance. Read once: a parked VAE stays parked."""
        return self.layers_of("vae").config.scaling_factor

    @property
    def image_grid(self) -> int:
        return self.vae_factor * 2 ** (len(self.layers_of("unet").config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(device=self.device, dtype=self.vae.dtype)
        return self.vae.encode(pixels).latent_dist.mean.float()

    def image_fingerprint(self) -> str:
        return self.weights_fingerprint("vae")

    def text_fingerprint(self) -> str:
        return " | ".join(self._encoder_fingerprint(component) for component in self.tokenizer_of)

    def _encoder_fingerprint(self, component: str) -> str:
        settings = [getattr(self.config, f"{component}_{name}") for name in ("layer_skip", "sequence_length")]
        if self.config.prompt_chunks > 1:
            settings.append(f"{self.config.prompt_chunks} chunks")
        vocabulary = json.dumps(self.tokenizer_of[component].get_vocab(), sort_keys=True)
        words = self.added_words[component].fingerprint()
        return f"{self.weights_fingerprint(component)} {settings} {hash_text(vocabulary)}{words}"

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draw:
        timesteps = draw_timesteps(self.config, shape[0], len(self.alphas_cumprod), generator)
        noise, mixed = draw_noise(self.config, shape, generator, self.offset_psi[timesteps])
        alphas = self.alphas_cumprod[timesteps]
        tensors = (noise, mixed, alphas.sqrt(), (1 - alphas).sqrt())
        tensors = (to_device(tensor, self.device) for tensor in tensors)
        return Draw(timesteps, *tensors, snr=alphas / (1 - alphas).clamp(min=1e-12))

    def clean_latents(self, latents: Tensor) -> Tensor:
        return super().clean_latents(latents) * self.latent_scale

    def target(self, clean: Tensor, draw: Draw) -> Tensor:
        if not self.velocity:
            return draw.noise
        return per_image(draw.signal, clean) * draw.noise - per_image(draw.spread, clean) * clean

    def denoise(self, noised: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Tensor:
        device = self.device
        # of one weight: diffusers' own `dtype` searches all modules for hooks, at every call
        weight_dtype = self.unet.conv_in.weight.dtype
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight_dtype
        hidden = conditions["hidden"].to(dtype)
        added = self.added_conditions(conditions, dtype)
        return self.unet(
            noised.to(dtype), draw.timesteps.to(device), hidden, added_cond_kwargs=added, return_dict=False
        )[0]

    def added_conditions(self, conditions: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """What the UNet is told beside the captions' hidden states."""
        return None

    @abstractmethod
    def make_pipeline(self, scheduler: diffusers.SchedulerMixin) -> DiffusionPipeline:
        """A diffusers pipeline around these very components, without text encoders: prompts come encoded."""

    def pipeline(self, scheduler: NoiseScheduler = NoiseScheduler.DDIM, last_timestep: bool = False):
        """The family's pipeline with the sampler of that name."""
        name, options = SCHEDULERS[scheduler]
        if last_timestep or self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            options = {**options, "timestep_spacing": "trailing"}
        if self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            options = {**options, "rescale_betas_zero_snr": True}
        pipeline = self.make_pipeline(getattr(diffusers, name).from_config(self.scheduler_config, **options))
        pipeline.set_progress_bar_config(disable=True)
        self.keep_masks_soft(pipeline)
        return pipeline

    def prompt_arguments(self, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`encode_prompts` in the names of the pipeline's arguments."""
        return {"prompt_embeds": prompts["hidden"], "negative_prompt_embeds": prompts["negative"]}

    @torch.no_grad()
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        if sample.noise_scheduler not in SCHEDULERS:
            raise UserError(
                f"noise_scheduler: found {sample.noise_scheduler}, expected one of {', '.join(map(str, SCHEDULERS))}."
            )
        height, width = self.sample_size(sample)
        prompts = self.prompt_arguments(self.prompts(sample))
        arguments = {name: tensor.to(self.unet.dtype) for name, tensor in prompts.items()}
        arguments |= {"height": height, "width": width, "guidance_scale": sample.cfg_scale}

        def report(pipeline, step: int, timestep, tensors: dict) -> dict:
            on_step(step + 1, sample.diffusion_steps)
            return tensors

        pipeline = self.pipeline(sample.noise_scheduler, sample.force_last_timestep)
        latents = pipeline(
            **{**arguments, **self.sample_conditioning(sample)},
            num_inference_steps=sample.diffusion_steps,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=report,
            output_type="latent",
        ).images
        # in the VAE's own precision: under a run's autocast to float16 its activations could overflow
        with torch.autocast(self.device.type, enabled=False):
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.latent_scale).sample
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        standard = STANDARD[self.config.model_type][0]
        open_clip = {SD1: (), SD2: ("text_encoder",), SDXL: ("text_encoder_2",)}[standard]
        components = {component: self.empty_component(component) for component in self.modules}
        tensors = ldm_checkpoint(components, int(standard == SDXL), open_clip)
        # of SD 1.x and 2.x the reader knows it by the model type
        if standard == SDXL and self.velocity:
            tensors.append(CheckpointTensor("v_pred", ()))
            if self.trained_scheduler_config().get("rescale_betas_zero_snr"):
                tensors.append(CheckpointTensor("ztsnr", ()))
        return tensors

    def trained_scheduler_config(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return {**self.scheduler_config, **changes}

    def file_description(self) -> dict[str, str]:
        architecture, base_version = self.file_names[self.config.model_type]
        prediction = "v" if self.velocity else "epsilon"
        return {"architecture": architecture, "base_version": base_version, "prediction_type": prediction}


def hash_text(text: str) -> str:
    """Short hash of a text for cache keys."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
