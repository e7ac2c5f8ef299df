"""Stable Diffusion 3 and 3.5: a transformer with flow matching that reads text and image in one attention.

Two CLIPs sum a caption up and are read token by token, as T5 is. Axes: `b` batch, `c` channels of latents, `h w` their
sides, `n` text tokens.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.ClipTexts import check_skip, clip_length, layer_output, side_by_side
from modules.model.families import STABLE_DIFFUSION_3, StandardModel
from modules.model.FlowModel import FlowModel
from modules.model.ModelSource import empty_module
from modules.model.native_file import fill_from_file, read_clip, read_vae
from modules.model.ScaledLatents import ScaledLatents
from modules.model.sd3_files import check_generation, sd3_checkpoint
from modules.model.sd3_keys import sd3_adapter_naming, sd3_layout
from modules.model.T5Texts import T5Texts
from modules.model.unet_keys import COMFY_CLIPS
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
# last layers of the CLIPs that are never read, token by token
UNUSED_CLIP_LAYERS = 1
# tokens of T5 that the published models were trained with, by whether they are 3.5
PROMPT_TOKENS = {True: 256, False: 77}


class StableDiffusion3Model(ScaledLatents, T5Texts, FlowModel):
    """The transformer reads the CLIPs' tokens, filled up to T5's width, then those of T5, and both CLIPs' summaries."""

    title = "Stable Diffusion 3"
    model_types = STABLE_DIFFUSION_3.model_types
    modules = {
        "transformer": SD3Transformer2DModel,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "vae": AutoencoderKL,
    }
    tokenizers = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer, "tokenizer_3": T5TokenizerFast}
    trainable_components = ("transformer", *CLIPS, T5)
    long_text_encoder = T5
    skips_layers = True
    # the published schedulers have one shift for all sizes
    shifts_any_model = False
    pipeline_arguments = {"hidden": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    file_formats = (ModelFormat.ORIGINAL_SINGLE_FILE, ModelFormat.ORIGINAL_TRANSFORMER)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn", "ff.net"],
        "attn-only": ["attn"],
    }
    input_layers = (
        *ScaledLatents.input_layers,
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.text_embedder.linear_1",
    )
    sample_defaults = STABLE_DIFFUSION_3.sample_defaults
    name_layers = staticmethod(sd3_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # of two blocks, one has text behind it and one has not
        small = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 16, "caption_projection_dim": 16}
        transformer = empty_module(SD3Transformer2DModel, {**small, "dual_attention_layers": [0]})
        sides = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        encoders = {name: empty_module(cls.modules[name], CLIPTextConfig(**sides)) for name in CLIPS}
        t5 = T5Config(d_model=32, d_kv=32, d_ff=32, num_layers=1, num_heads=1, feed_forward_proj="gated-gelu")
        return sd3_adapter_naming(transformer, {**encoders, T5: empty_module(T5EncoderModel, t5)})

    # -- files ----------------------------------------------------------------------------------------------------

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "transformer":
            check_generation(path, module)
            return fill_from_file(path, module, dtype, sd3_layout(module.config.num_layers).tensor)
        if component == "vae":
            return read_vae(path, module, dtype)
        if component == T5:
            return self.read_t5(path, dtype)
        if component == "text_encoder_2":
            return read_clip(path, module, dtype, COMFY_CLIPS[1])
        # of the small CLIP files have no projection, or one that no program uses here
        read_clip(path, module.text_model, dtype, COMFY_CLIPS[0])
        identity = torch.eye(*module.text_projection.weight.shape, dtype=dtype)
        module.text_projection.weight = nn.Parameter(identity, requires_grad=False)
        return module.eval()

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer in the original layout; in a whole checkpoint with the VAE and the text encoders."""
        components = {"transformer": self.layers_of("transformer")}
        if model_format == ModelFormat.ORIGINAL_SINGLE_FILE:
            components |= {name: self.empty_component(name) for name in list(self.modules)[1:]}
        return sd3_checkpoint(components)

    @property
    def standard_model(self) -> StandardModel:
        older, large, medium = STABLE_DIFFUSION_3.standard_models
        if not self.is_35:
            return older
        return medium if self.layers_of("transformer").config.dual_attention_layers else large

    # -- images and captions --------------------------------------------------------------------------------------

    def check_layers(self) -> None:
        super().check_layers()
        for component in CLIPS:
            skip = getattr(self.config, f"{component}_layer_skip")
            check_skip(component, self.layers_of(component).config.num_hidden_layers, skip, UNUSED_CLIP_LAYERS)
        check_skip(T5, self.layers_of(T5).config.num_layers, self.config.text_encoder_3_layer_skip)

    @property
    def patch(self) -> int:
        return self.layers_of("transformer").config.patch_size

    def pack_latents(self, latents: Tensor) -> Tensor:
        most = self.patch * self.layers_of("transformer").config.pos_embed_max_size
        if max(latents.shape[2:]) > most:
            pixels = self.image_grid // self.patch
            height, width = (pixels * side for side in latents.shape[2:])
            raise UserError(
                f"resolution: an image of {width} x {height} pixels is too large; this model has places for sides of "
                f"up to {pixels * most} pixels. Choose a smaller resolution, or less extreme ratios of sides."
            )
        return super().pack_latents(latents)

    @property
    def is_35(self) -> bool:
        """Whether queries and keys have norms, as in 3.5."""
        return self.layers_of("transformer").config.qk_norm is not None

    @property
    def prompt_tokens(self) -> int:
        return PROMPT_TOKENS[self.is_35]

    def _clip_length(self, component: str, sample: SampleConfig | None = None) -> int:
        """Tokens that a CLIP reads of captions, or of a sample's prompts."""
        number = 1 + CLIPS.index(component)
        own = getattr(sample, f"text_encoder_{number}_sequence_length") if sample else None
        wanted = own or getattr(self.config, f"{component}_sequence_length")
        return clip_length(self.tokenizer_of[component], self.layers_of(component), wanted)

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` and `pooled` `[b, both CLIPs' widths]`, in the text encoders' formats."""
        return self._encode(captions, length)

    def encode_prompt(self, text: str, sample: SampleConfig) -> dict[str, Tensor]:
        return self._encode([text], self.text_length(sample), sample)

    def _encode(self, captions: list[str], length: int | None, sample: SampleConfig | None = None) -> dict[str, Tensor]:
        hidden, pooled = [], []
        for number, component in enumerate(self.tokenizer_of, 1):
            own = getattr(sample, f"text_encoder_{number}_layer_skip") if sample else 0
            skip = own or getattr(self.config, f"{component}_layer_skip")
            most = self.t5_length(length) if component == T5 else self._clip_length(component, sample)
            encoder = self.components[component]
            # the published models see what fills a caption up, so no mask hides it
            ids = self.tokens(component, captions, most).input_ids.to(self.device)
            output = encoder(ids, output_hidden_states=True)
            if component == T5:
                states = layer_output(component, output.hidden_states, skip)
                # only the last layer's output is normalised already
                hidden.append(encoder.encoder.final_layer_norm(states) if skip else states)
            else:
                hidden.append(layer_output(component, output.hidden_states, skip, UNUSED_CLIP_LAYERS))
                pooled.append(output.text_embeds)
        *clips, t5 = hidden
        joined = side_by_side(clips, self.title)
        joined = F.pad(joined, (0, t5.shape[-1] - joined.shape[-1]))
        return {"hidden": torch.cat([joined, t5], dim=1), "pooled": torch.cat(pooled, dim=-1)}

    def text_settings(self, component: str) -> list[Any]:
        length = self.t5_length(self.text_length()) if component == T5 else self._clip_length(component)
        return [length, getattr(self.config, f"{component}_layer_skip")]

    # -- training and samples -------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        hidden, pooled = (conditions[name].to(noised.dtype) for name in ("hidden", "pooled"))
        return self.transformer(noised, hidden, pooled, 1000 * level, return_dict=False)[0]

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return StableDiffusion3Pipeline(self.transformer, scheduler, self.vae, *[None] * 6)
