"""Flux.2: dev, which is told its guidance, and the smaller Klein models.

A transformer with flow matching on packed latents; captions are inner layers of a language model, Mistral in dev and
Qwen in Klein. Axes: `b` batch, `c` channels of packed latents, `h w` their sides, `n` text tokens, `l` all tokens.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.BaseModel import BaseModel
from modules.model.cut_text import cut_text
from modules.model.diffusion_noise import draw_noise, draw_noise_levels
from modules.model.Draw import Draw
from modules.model.flux2_files import fill_transformer, fill_vae
from modules.model.flux2_keys import flux2_adapter_naming, native_tensor
from modules.model.ModelSource import FolderSource, ModelSource, empty_module
from modules.model.StandardSource import StandardSource
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.config.errors import Problem, Remedy
from modules.util.config.field_type import default_of
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LossWeight import LossWeight
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from PIL import Image
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, PreTrainedModel, Qwen3ForCausalLM

PROMPT_TOKENS = 512  # that the published models were trained with


def _dev_chat(caption: str) -> list[dict[str, Any]]:
    # the mark of an image, which only a processor for images could read
    texts = {"system": SYSTEM_MESSAGE, "user": caption.replace("[IMG]", "")}
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()]


def _klein_chat(caption: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": caption}]


@dataclass(frozen=True)
class Variant:
    """What dev and Klein differ in.

    Attributes:
        pipeline: draws samples.
        layers: hidden states of the text encoder that make up a prompt's embedding, side by side.
        chat: a caption as the conversation that the text encoder was trained on.
        template: options of the tokenizer's chat template.
        negative: whether samples are steered away from a second prompt; dev is told its guidance instead.
    """

    pipeline: type[DiffusionPipeline]
    layers: tuple[int, ...]
    chat: Callable[[str], list[dict[str, Any]]]
    template: Mapping[str, bool]
    negative: bool


VARIANTS: dict[type[PreTrainedModel], Variant] = {
    Mistral3ForConditionalGeneration: Variant(
        Flux2Pipeline, (10, 20, 30), _dev_chat, {"add_generation_prompt": False}, negative=False
    ),
    Qwen3ForCausalLM: Variant(
        Flux2KleinPipeline, (9, 18, 27), _klein_chat, {"add_generation_prompt": True, "enable_thinking": False},
        negative=True,
    ),
}  # fmt: skip
# attention heads -> what model managers and kohya's trainers call the model
FILE_NAMES = {
    48: ("Flux.2-dev", "flux_2_dev"),
    32: ("Flux.2-klein-9b", "flux_2_klein_9b"),
    24: ("Flux.2-klein-4b", "flux_2_klein_4b"),
}
# options that a schedule with a fixed noise level for each step has
_OF_SCHEDULES = (
    "rescale_noise_scheduler_to_zero_terminal_snr", "force_v_prediction", "force_epsilon_prediction",
    "generalized_offset_noise", "text_encoder_layer_skip",
)  # fmt: skip


class Flux2Model(BaseModel):
    """Flow matching: x_σ = (1 − σ)·x + σ·ε, the target is ε − x; σ is continuous, and the transformer's timestep.

    With `dynamic_timestep_shifting` the shift follows from the number of tokens, as the model's scheduler says, and
    `timestep_shift` is not used. `transformer.guidance_scale` is told to models that are distilled for guidance.
    """

    model_types = (ModelType.FLUX_2,)
    variants = tuple(
        {"transformer": Flux2Transformer2DModel, "text_encoder": encoder, "vae": AutoencoderKLFlux2}
        for encoder in VARIANTS
    )
    modules = variants[0]
    # dev's folder holds a processor for images and text, of which this is the half that is needed
    tokenizers = {"tokenizer": AutoTokenizer}
    trainable_parts = ("transformer",)
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn", "ff"],
        "attn-only": ["attn"],
    }
    sample_defaults = {"width": 1024, "height": 1024, "cfg_scale": 4.0}
    shifts_by_size = True

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        assert isinstance(source, FolderSource | StandardSource)
        self.modules = {name: source.classes[name] for name in type(self).modules}
        super().__init__(config, source, device)
        self.variant = VARIANTS[self.modules["text_encoder"]]
        self.tokenizer = source.tokenizer("tokenizer")
        self.scheduler_config = source.scheduler_config()
        if "base_image_seq_len" not in self.scheduler_config:
            raise UserError(
                f"The base model {source.name} has no flow-matching scheduler: its scheduler_config.json lacks "
                "base_image_seq_len. Download it again."
            )

    @classmethod
    def check_config(cls, config: TrainConfig) -> list[Problem]:
        found = super().check_config(config)
        for key in _OF_SCHEDULES:
            if getattr(config, key):
                text = f"has no meaning for {config.model_type}; set it to its default"
                found.append(Problem(key, text, (Remedy.of({key: default_of(TrainConfig, key)}),)))
        if config.loss_weight_fn not in (LossWeight.CONSTANT, LossWeight.SIGMA):
            text = f"{config.loss_weight_fn} has no meaning for {config.model_type}; expected CONSTANT or SIGMA"
            found.append(Problem("loss_weight_fn", text, (Remedy.of({"loss_weight_fn": "CONSTANT"}),)))
        return found

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block of each kind has every kind of layer
        small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16}
        return flux2_adapter_naming(empty_module(Flux2Transformer2DModel, {**small, "axes_dims_rope": [4, 4, 4, 4]}))

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file. A file of Flux.2 holds the transformer alone, without text encoder "
            "and VAE: name a diffusers folder (or hub name) here, and this file as transformer.model_name."
        )

    def read_part(self, path: Path, part: str, dtype: torch.dtype) -> nn.Module:
        fill = {"transformer": fill_transformer, "vae": fill_vae}.get(part)
        if fill is None:
            return super().read_part(path, part, dtype)
        return fill(path, self.source.empty(part), dtype)

    @property
    def transformer(self) -> nn.Module:
        return self.components["transformer"]

    @property
    def text_encoder(self) -> nn.Module:
        return self.components["text_encoder"]

    @property
    def vae(self) -> nn.Module:
        return self.components["vae"]

    @property
    def image_grid(self) -> int:
        """Pixels of one token; 16 in the published models."""
        config = self.layers_of("vae").config
        return 2 ** (len(config.block_out_channels) - 1) * config.patch_size[0]

    # -- images ---------------------------------------------------------------------------------------------------

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[c, 1, 1]` of packed latents, which the VAE knows as those of a batch norm."""
        norm = self.vae.bn
        spread = (norm.running_var.float() + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.float()[:, None, None], spread[:, None, None]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b, 3, H, W]` -> packed latents `[b, c, h, w]`: each channel holds one pixel of a patch of the VAE's own."""
        pixels = pixels.to(device=self.device, dtype=self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.mode().float()
        mean, spread = self._statistics()
        return (F.pixel_unshuffle(latents, self.vae.config.patch_size[0]) - mean) / spread

    @torch.no_grad()
    def decode_images(self, latents: Tensor) -> Tensor:
        """Undoes `encode_images`."""
        mean, spread = self._statistics()
        latents = F.pixel_shuffle(latents.float() * spread + mean, self.vae.config.patch_size[0])
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def image_fingerprint(self) -> str:
        return f"{self.weights_hash('vae')} {self.vae.dtype} {self.vae.config.batch_norm_eps} packed"

    # -- captions -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format: a caption of dev takes 16 MB in bfloat16."""
        return {"hidden": self._encode(captions, self.config.text_encoder_sequence_length)}

    def _encode(self, captions: list[str], length: int | None) -> Tensor:
        layers = self.variant.layers
        tokens = self.tokenizer.apply_chat_template(
            self._chats(captions), tokenize=True, return_dict=True, return_tensors="pt", padding="max_length",
            truncation=True, max_length=length or PROMPT_TOKENS, **self.variant.template,
        ).to(self.device)  # fmt: skip
        # without the head, whose scores for every word of the vocabulary nobody needs
        states = self.text_encoder.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        if len(states) <= max(layers):
            raise UserError(
                f"The text encoder has {len(states) - 1} layers, but captions of this model are its layers "
                f"{', '.join(map(str, layers))}. Take the text encoder that belongs to the model."
            )
        return torch.cat([states[layer] for layer in layers], dim=-1)

    def text_limits(self) -> dict[str, int]:
        length = self.config.text_encoder_sequence_length or PROMPT_TOKENS
        return {"text_encoder": max(0, length - len(self._bare_ids([""])[0]))}

    def count_tokens(self, part: str, texts: Sequence[str]) -> list[int]:
        empty = len(self._bare_ids([""])[0])
        return [len(ids) - empty for ids in self._bare_ids(texts)]

    def read_more(self, part: str, tokens: int) -> str:
        return f"text_encoder_sequence_length to {tokens + len(self._bare_ids([''])[0])}"

    def _bare_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of captions as conversations, however many."""
        options = {**self.variant.template, "tokenizer_kwargs": {"verbose": False}}
        chats = self._chats(captions)
        return self.tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True, **options)["input_ids"]

    def _chats(self, captions: Sequence[str]) -> list[list[dict[str, Any]]]:
        return [self.variant.chat(cut_text(caption)) for caption in captions]

    def text_fingerprint(self) -> str:
        settings = [self.config.text_encoder_sequence_length, self.variant.layers, self.variant.chat("")]
        words = [self.tokenizer.get_vocab(), self.tokenizer.chat_template, self.tokenizer.padding_side]
        known = hashlib.sha256(json.dumps([settings, words], sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.weights_hash('text_encoder')} {self.text_encoder.dtype} {known}"

    # -- training -------------------------------------------------------------------------------------------------

    def shift_of_size(self, tokens: int) -> float:
        """e^μ with μ linear in the number of tokens of an image; as the scheduler's options say."""
        options = self.scheduler_config
        low, high = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (high - low)
        mu = options["base_shift"] + slope * (tokens - low)
        return math.exp(mu) if options["time_shift_type"] == "exponential" else mu

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draw:
        config = self.config
        shift = self.shift_of_size(shape[2] * shape[3]) if config.dynamic_timestep_shifting else None
        sigma = draw_noise_levels(config, shape[0], generator, shift).float()
        noise, mixed = draw_noise(config, shape, generator)
        parts = (part.to(self.device, non_blocking=True) for part in (noise, mixed, 1 - sigma, sigma))
        return Draw(1000 * sigma, *parts, sigma=sigma)

    def target(self, clean: Tensor, draw: Draw) -> Tensor:
        return draw.noise - clean

    def denoise(self, noised: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Tensor:
        return self._velocity(noised, draw.spread, conditions["hidden"])

    def _velocity(self, noisy: Tensor, level: Tensor, hidden: Tensor) -> Tensor:
        """The transformer's output `[b, c, h, w]` for latents of the same shape and noise levels `[b]`."""
        b, _, h, w = noisy.shape
        transformer = self.transformer
        # of a norm: matrices may be quantized
        dtype = transformer.single_transformer_blocks[0].attn.norm_q.weight.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        guidance = None
        if transformer.config.guidance_embeds:
            guidance = torch.full((b,), self.config.transformer.guidance_scale, device=self.device)
        output = transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=hidden.to(dtype),
            timestep=level,
            guidance=guidance,
            img_ids=_places(h, w, 1, self.device),
            txt_ids=_places(1, 1, hidden.shape[1], self.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (h, w))

    # -- samples --------------------------------------------------------------------------------------------------

    def pipeline(self) -> DiffusionPipeline:
        """A diffusers pipeline around these very components, for prompts that are encoded."""
        kind = self.variant.pipeline
        # a Klein that is distilled to few steps takes no guidance
        assert isinstance(self.source, FolderSource | StandardSource)
        distilled = self.source.index().get("is_distilled")
        options = {} if distilled is None else {"is_distilled": distilled}
        pipeline = kind(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config),
            vae=self.vae,
            text_encoder=None,
            tokenizer=None,
            transformer=self.transformer,
            **options,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        length = sample.text_encoder_1_sequence_length or self.config.text_encoder_sequence_length
        names = {"prompt_embeds": sample.prompt}
        if self.variant.negative:
            names["negative_prompt_embeds"] = sample.negative_prompt
        return dict(zip(names, self._encode(list(names.values()), length).split(1), strict=True))

    @torch.no_grad()
    def sample(self, sample: SampleConfig, seed: int, on_step: Callable[[int, int], None]) -> Image.Image:
        """Draws one image. There is one sampler for flow matching, whatever `noise_scheduler` says."""
        if sample.sample_inpainting:
            raise UserError("sample_inpainting: not supported by this model family; set it to false.")
        grid, pipeline = self.image_grid, self.pipeline()
        h, w = max(1, sample.height // grid), max(1, sample.width // grid)
        dtype = self.transformer.single_transformer_blocks[0].attn.norm_q.weight.dtype

        drawn: list[Tensor] = []

        def report(pipeline, step: int, timestep, tensors: dict) -> dict:
            on_step(step + 1, sample.diffusion_steps)
            drawn[:] = [tensors["latents"]]
            return tensors

        pipeline(
            **{name: tensor.to(dtype) for name, tensor in self.prompts(sample).items()},
            height=h * grid,
            width=w * grid,
            num_inference_steps=sample.diffusion_steps,
            guidance_scale=sample.cfg_scale,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=report,
            # decoded here, as the VAE may have another number format; what the two pipelines return differs
            output_type="latent",
        )
        pixels = self.decode_images(drawn[0].transpose(1, 2).unflatten(2, (h, w)))
        return pipeline.image_processor.postprocess(pixels)[0]

    def set_gradient_checkpointing(self, part: str, enabled: bool) -> None:
        if enabled:
            self.components[part].enable_gradient_checkpointing()
            # diffusers checkpoints only in training mode; nothing here has dropout of its own
            self.components[part].train()

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the original layout."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), native_tensor)

    def adapter_naming(self) -> AdapterNaming:
        """How the layers of the transformer are called in adapter files."""
        return flux2_adapter_naming(self.layers_of("transformer"))

    def file_description(self) -> dict[str, str]:
        heads = self.layers_of("transformer").config.num_attention_heads
        architecture, base_version = FILE_NAMES.get(heads, ("", ""))
        return {"architecture": architecture, "base_version": base_version}


def _places(height: int, width: int, length: int, device: torch.device) -> Tensor:
    """`[l, 4]` (time, row, column, place in the text) of tokens, row by row."""
    rows, columns, places = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), torch.arange(length, device=device),
        indexing="ij",
    )  # fmt: skip
    return torch.stack([torch.zeros_like(rows), rows, columns, places], dim=-1).flatten(0, 2)
