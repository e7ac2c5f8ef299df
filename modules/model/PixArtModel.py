"""PixArt alpha and Sigma: a transformer that predicts noise and sees T5's captions by cross-attention.

Its answer has as many channels again as the latents: a learned variance, which neither training nor samples use. Alpha
of 1024 pixels is told the size and the ratio of sides of an image. Axes: `b` batch, `c` channels of latents, `h w`
their sides, `n` text tokens.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.ClipTexts import check_skip, layer_output
from modules.model.families import PIXART
from modules.model.ModelSource import empty_module
from modules.model.native_file import fill_from_file, read_vae
from modules.model.pixart_keys import PIXART_LAYOUT, pixart_adapter_naming
from modules.model.ScaledLatents import ScaledLatents
from modules.model.ScheduledNoise import ScheduledNoise
from modules.model.T5Texts import T5Texts
from modules.model.TransformerModel import of_one_length
from modules.model.weight_formats import widen_vae
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.to_device import to_device

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SchedulerMixin,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

# tokens of captions that the published models were trained with
PROMPT_TOKENS = {ModelType.PIXART_ALPHA: 120, ModelType.PIXART_SIGMA: 300}
# what files of the transformer hold beside: places, which are computed, and the caption that is none
_UNUSED = ("pos_embed", "y_embedder.y_embedding", "caption_projection.y_embedding")


class PixArtModel(ScheduledNoise, ScaledLatents, T5Texts):
    """The transformer is told a timestep, and says ε."""

    title = "PixArt"
    model_types = PIXART.model_types
    modules = {"transformer": PixArtTransformer2DModel, "text_encoder": T5EncoderModel, "vae": AutoencoderKL}
    # as published folders call the class that this one was made of
    index_names = {"transformer": "Transformer2DModel"}
    tokenizers = {"tokenizer": T5TokenizerFast}
    trainable_components = ("transformer", "text_encoder")
    skips_layers = True
    hides_padding = True
    prompts_side_by_side = True
    without_xformers = "captions of different lengths need a mask, with which that library was not tried here"
    pipeline_arguments = {"hidden": "prompt_embeds", "mask": "prompt_attention_mask"}
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn1", "attn2", "ff.net"],
        "attn-only": ["attn1", "attn2"],
    }
    input_layers = (
        *T5Texts.input_layers,
        "caption_projection.linear_1",
        *(f"adaln_single.emb.{name}_embedder.linear_1" for name in ("timestep", "resolution", "aspect_ratio")),
    )
    sample_defaults = PIXART.sample_defaults
    name_layers = staticmethod(pixart_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block has every kind of layer
        small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 24, "cross_attention_dim": 24}
        small |= {"caption_channels": 16, "sample_size": 8, "use_additional_conditions": True}
        t5 = T5Config(d_model=32, d_kv=32, d_ff=32, num_layers=1, num_heads=1, feed_forward_proj="gated-gelu")
        return pixart_adapter_naming(
            empty_module(PixArtTransformer2DModel, small), {"text_encoder": empty_module(T5EncoderModel, t5)}
        )

    # -- files ----------------------------------------------------------------------------------------------------

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        if component == "text_encoder":
            return self.read_t5(path, dtype)
        module = self.source.empty(component)
        if component == "vae":
            return read_vae(path, module, dtype)
        module = fill_from_file(path, module, dtype, PIXART_LAYOUT.tensor, _UNUSED)
        own, config = module.pos_embed, module.config
        filled = type(own)(
            height=config.sample_size, width=config.sample_size, patch_size=config.patch_size,
            in_channels=config.in_channels, embed_dim=module.inner_dim, interpolation_scale=own.interpolation_scale,
        )  # fmt: skip
        own.pos_embed = filled.pos_embed.to(dtype)
        return module

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the original layout, without places: they follow from an image's size."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), PIXART_LAYOUT.tensor)

    def _load_component(self, name: str) -> nn.Module:
        module = super()._load_component(name)
        return widen_vae(module) if name == "vae" else module

    # -- captions -------------------------------------------------------------------------------------------------

    def check_layers(self) -> None:
        super().check_layers()
        layers = self.layers_of("text_encoder").config.num_layers
        check_skip("text_encoder", layers, self.config.text_encoder_layer_skip)

    @property
    def prompt_tokens(self) -> int:
        return PROMPT_TOKENS[self.config.model_type]

    def read_as(self, text: str) -> str:
        """In small letters, as diffusers' pipelines have it and the published models were trained."""
        return super().read_as(text).lower().strip()

    def t5_length(self, length: int | None) -> int:
        """At most as many as the published models were trained with: the option's default is that of other families."""
        return min(super().t5_length(length), self.prompt_tokens)

    def read_more(self, component: str, tokens: int) -> str:
        return super().read_more(component, tokens) if tokens < self.prompt_tokens else ""

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        return self._encode(captions, length, self.config.text_encoder_layer_skip)

    def encode_prompt(self, text: str, sample: SampleConfig) -> dict[str, Tensor]:
        skip = sample.text_encoder_1_layer_skip or self.config.text_encoder_layer_skip
        return self._encode([text], self.text_length(sample), skip)

    def _encode(self, captions: list[str], length: int | None, skip: int) -> dict[str, Tensor]:
        tokens = self.tokens("text_encoder", captions, self.t5_length(length))
        longest = int(tokens.attention_mask.sum(dim=1).max())
        # none depends on how many follow
        ids, seen = (tensor[:, :longest].to(self.device) for tensor in (tokens.input_ids, tokens.attention_mask))
        encoder = self.components["text_encoder"]
        output = encoder(ids, attention_mask=seen, output_hidden_states=bool(skip))
        hidden = output.last_hidden_state
        if skip:
            # only the last layer's output is normalised already
            hidden = encoder.encoder.final_layer_norm(layer_output("text_encoder", output.hidden_states, skip))
        return {"hidden": hidden * seen[..., None], "mask": seen.bool()}

    def text_settings(self, component: str) -> list[Any]:
        return [*super().text_settings(component), self.config.text_encoder_layer_skip]

    # -- training -------------------------------------------------------------------------------------------------

    @property
    def patch(self) -> int:
        return self.layers_of("transformer").config.patch_size

    def call_transformer(self, noised: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        mask, told = conditions["mask"], {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            # the size in which an image is seen, as samples are told; not that of its file
            height, width = (side * self.image_grid // self.patch for side in noised.shape[2:])
            sizes = to_device(torch.tensor([[height, width, height / width]]), self.device).expand(len(noised), 3)
            told = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
        output = self.transformer(
            noised,
            encoder_hidden_states=conditions["hidden"].to(noised.dtype),
            timestep=time,
            added_cond_kwargs=told,
            # kernels without a mask are faster, and texts of one length need none
            encoder_attention_mask=None if bool(mask.all()) else mask,
            return_dict=False,
        )[0]
        # behind them stands the learned variance, if there is one
        return output[:, : noised.shape[1]]

    # -- samples --------------------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        # they differ in what the transformer is told
        kind = PixArtAlphaPipeline if self.transformer.use_additional_conditions else PixArtSigmaPipeline
        return kind(None, None, self.vae, self.transformer, scheduler)

    def sampler(self, sample: SampleConfig) -> DiffusionPipeline:
        if sample.diffusion_steps == 1 and self.transformer.use_additional_conditions:
            # of a single step alpha's pipeline takes the clean image, which solvers of higher order do not give
            sample = sample.model_copy(update={"noise_scheduler": NoiseScheduler.DDIM})
        return super().sampler(sample)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        # sizes stay as they are asked for, and the second prompt comes encoded, too
        return {**of_one_length(prompts), "negative_prompt": None, "use_resolution_binning": False}

    def step_callback(self, report: Callable[[int, Tensor], None]) -> dict[str, Any]:
        return {"callback": lambda step, timestep, latents: report(step, latents)}
