"""Flux.1: dev, which is told its guidance, and schnell, which is not.

A transformer with flow matching on packed latents. CLIP sums a caption up, T5 reads it token by token. Axes: `b` batch,
`c` channels of packed latents, `h w` their sides, `n` text tokens.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from modules.model.ClipTexts import clip_length
from modules.model.families import FLUX_1, StandardModel, facts_of
from modules.model.flux1_keys import FLUX_1_LAYOUT, flux1_adapter_naming
from modules.model.ModelSource import empty_module
from modules.model.native_file import fill_from_file, read_clip, read_vae
from modules.model.PatchedLatents import PatchedLatents
from modules.model.T5Texts import T5Texts
from modules.model.weights_file import WeightsFile
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

# tokens of T5 that the published models were trained with, by whether they are told their guidance
PROMPT_TOKENS = {True: 512, False: 256}


class FluxModel(PatchedLatents, T5Texts):
    """The transformer reads T5's tokens, and is told CLIP's summary of the caption and the noise level.

    `transformer.guidance_scale` is told to models that are distilled for guidance: dev has an embedding for it.
    """

    title = "Flux.1"
    model_types = FLUX_1.model_types
    modules = {
        "transformer": FluxTransformer2DModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "vae": AutoencoderKL,
    }
    tokenizers = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5TokenizerFast}
    long_text_encoder = "text_encoder_2"
    pipeline_arguments = {"hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    # the distilled models know no second prompt
    steers_away = False
    # models of its shape
    like_it: ClassVar[str] = "Flux.1 dev and schnell"
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn", "ff.net"],
        "attn-only": ["attn"],
    }
    input_layers = (
        *PatchedLatents.input_layers,
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.guidance_embedder.linear_1",
        "time_text_embed.text_embedder.linear_1",
    )
    sample_defaults = FLUX_1.sample_defaults
    name_layers = staticmethod(flux1_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block of each kind has every kind of layer
        small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16}
        return flux1_adapter_naming(empty_module(FluxTransformer2DModel, {**small, "axes_dims_rope": [4, 6, 6]}))

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        empty = self.source.empty(component)
        if component == "transformer":
            _check_guidance(path, empty)
            return fill_from_file(path, empty, dtype, FLUX_1_LAYOUT.tensor)
        if component == "vae":
            return read_vae(path, empty, dtype)
        if component == "text_encoder":
            return read_clip(path, empty, dtype)
        return self.read_t5(path, dtype)

    def check_layers(self) -> None:
        super().check_layers()
        found, expected = self.layers_of("transformer").config.in_channels, self.input_channels
        if found != expected:
            raise UserError(
                f"base_model_name: the transformer of {self.source.name} reads {found} channels, expected {expected} "
                f"as in {self.like_it}. Fill reads a mask and what it leaves of an image beside the noised one, and "
                "has its own model_type, FLUX_FILL_DEV_1. Depth and Canny read a second image, too, and can't be "
                "trained here."
            )

    @property
    def input_channels(self) -> int:
        """Channels of a token that the transformer reads."""
        return 4 * self.layers_of("vae").config.latent_channels

    # -- captions -------------------------------------------------------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        return PROMPT_TOKENS[self.guided]

    def _clip_length(self) -> int:
        wanted = self.config.text_encoder_sequence_length
        return clip_length(self.tokenizer_of["text_encoder"], self.layers_of("text_encoder"), wanted)

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` and `pooled` `[b, d]`, each in its text encoder's format."""
        lengths = {"text_encoder": self._clip_length(), "text_encoder_2": self.t5_length(length)}
        # the published models see what fills a caption up, so no mask hides it
        encoded = {
            component: self.components[component](self.tokens(component, captions, own).input_ids.to(self.device))
            for component, own in lengths.items()
        }
        return {
            "hidden": encoded["text_encoder_2"].last_hidden_state,
            "pooled": encoded["text_encoder"].pooler_output,
        }

    def text_settings(self, component: str) -> list[Any]:
        return super().text_settings(component) if component == "text_encoder_2" else [self._clip_length()]

    # -- training -------------------------------------------------------------------------------------------------

    @property
    def guided(self) -> bool:
        """Whether the model is told its guidance, as dev is."""
        return bool(self.layers_of("transformer").config.guidance_embeds)

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        b, _, h, w = noised.shape
        hidden, pooled = (conditions[name].to(noised.dtype) for name in ("hidden", "pooled"))
        guidance = torch.full((b,), self.config.transformer.guidance_scale, device=self.device) if self.guided else None
        output = self.transformer(
            **self.image_tokens(noised, conditions, hidden.shape[1]),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=level,
            guidance=guidance,
            return_dict=False,
        )[0]
        return self.image_of_tokens(output[:, : h * w], h, w)

    def image_tokens(self, noised: Tensor, conditions: Mapping[str, Tensor], text_tokens: int) -> dict[str, Tensor]:
        """Arguments of the transformer for what it sees beside the text; those of the noised image come first."""
        return self.tokens_and_places(noised, text_tokens)

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return FluxPipeline(scheduler, self.vae, None, None, None, None, self.transformer)

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the original layout."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), FLUX_1_LAYOUT.tensor)

    @property
    def standard_model(self) -> StandardModel:
        facts = facts_of(self.config.model_type)
        assert facts is not None
        # dev comes first
        first, *others = facts.standard_models
        return others[0] if others and not self.guided else first


def _check_guidance(path: Path, transformer: nn.Module) -> None:
    """UserError if a file is of dev and the base model is schnell, or the other way round."""
    names = WeightsFile(path).shapes
    file, base = any("guidance_" in name for name in names), bool(transformer.config.guidance_embeds)
    if names and file != base:
        kinds = {True: "dev, which has an embedding of its guidance", False: "schnell, which has none of its guidance"}
        raise UserError(
            f"transformer.model_name: {path} is of Flux.1 {kinds[file]}, but the base model is {kinds[base]}. Name a "
            f"folder of Flux.1 {kinds[file].split(',')[0]} as base_model_name."
        )
