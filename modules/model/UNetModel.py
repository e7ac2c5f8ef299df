"""What the families with a UNet, CLIP text encoders and a KL autoencoder share."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

from modules.model.ClipTexts import ClipTexts, check_skip
from modules.model.Draw import Draw
from modules.model.ldm_checkpoint import ldm_checkpoint
from modules.model.ModelSource import empty_module
from modules.model.ScheduledNoise import ScheduledNoise
from modules.model.single_file import SD1, SD2, SDXL, STANDARD, SingleFileSource, load_component
from modules.model.unet_keys import unet_adapter_naming
from modules.model.weight_formats import widen_vae
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig


class UNetModel(ScheduledNoise, ClipTexts):
    """A UNet that is told the timestep and sees captions by its attention."""

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
        return widen_vae(module) if name == "vae" else module

    def check_layers(self) -> None:
        super().check_layers()
        for component in self.tokenizer_of:
            layers = self.layers_of(component).config.num_hidden_layers
            check_skip(component, layers, getattr(self.config, f"{component}_layer_skip"), self.unused_layers)

    @property
    def unet(self) -> nn.Module:
        return self.components["unet"]

    @property
    def vae(self) -> nn.Module:
        return self.components["vae"]

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

    def clean_latents(self, latents: Tensor) -> Tensor:
        return super().clean_latents(latents) * self.latent_scale

    def denoise(self, noised: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Tensor:
        device = self.device
        # of one weight: diffusers' own `dtype` searches all modules for hooks, at every call
        weight_dtype = self.unet.conv_in.weight.dtype
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight_dtype
        hidden = conditions["hidden"].to(dtype)
        added = self.added_conditions(conditions, dtype)
        return self.unet(noised.to(dtype), self.time_of(draw), hidden, added_cond_kwargs=added, return_dict=False)[0]

    def added_conditions(self, conditions: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """What the UNet is told beside the captions' hidden states."""
        return None

    def prompt_arguments(self, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`encode_prompts` in the names of the pipeline's arguments."""
        return {"prompt_embeds": prompts["hidden"], "negative_prompt_embeds": prompts["negative"]}

    @torch.no_grad()
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        height, width = self.sample_size(sample)
        prompts = self.prompt_arguments(self.prompts(sample))
        arguments = {name: tensor.to(self.unet.dtype) for name, tensor in prompts.items()}
        arguments |= {"height": height, "width": width, "guidance_scale": sample.cfg_scale}

        def report(pipeline, step: int, timestep, tensors: dict) -> dict:
            on_step(step + 1, sample.diffusion_steps)
            return tensors

        pipeline = self.sampler(sample)
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

    def file_description(self) -> dict[str, str]:
        architecture, base_version = self.file_names[self.config.model_type]
        prediction = "v" if self.velocity else "epsilon"
        return {"architecture": architecture, "base_version": base_version, "prediction_type": prediction}


def hash_text(text: str) -> str:
    """Short hash of a text for cache keys."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
