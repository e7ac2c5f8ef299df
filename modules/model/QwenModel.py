"""Qwen-Image: a transformer with flow matching on packed latents, in which text and image have blocks of their own.

Captions are the last layer of Qwen2.5-VL, whose half for images is not loaded. The VAE is one of videos. Axes: `b`
batch, `c` channels of packed latents, `h w` their sides, `n` text tokens.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from modules.model.families import QWEN
from modules.model.ModelSource import empty_module
from modules.model.native_file import NativeTensor, fill_from_file, read_language_model
from modules.model.qwen_keys import qwen_adapter_naming
from modules.model.QwenLatents import QwenLatents
from modules.model.QwenTexts import BESIDE_TEXT, NOT_READ, QwenTexts
from modules.model.WanLatents import read_wan_vae
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import AutoTokenizer, Qwen2_5_VLTextModel

# tokens that diffusers' pipeline reads at most
MOST_TOKENS = 1024


class QwenTextEncoder(Qwen2_5_VLTextModel):
    """The language model out of Qwen2.5-VL. What its files hold beside is left in them."""

    _keys_to_ignore_on_load_unexpected = NOT_READ


class QwenModel(QwenTexts, QwenLatents):
    """The transformer reads the text that stands around the caption only behind it: the first 34 tokens are cut."""

    title = "Qwen-Image"
    model_types = QWEN.model_types
    modules = {
        "transformer": QwenImageTransformer2DModel,
        "text_encoder": QwenTextEncoder,
        "vae": AutoencoderKLQwenImage,
    }
    index_names = {"text_encoder": "Qwen2_5_VLForConditionalGeneration"}
    tokenizers = {"tokenizer": AutoTokenizer}
    pipeline_arguments = {"hidden": "prompt_embeds", "mask": "prompt_embeds_mask"}
    guidance_argument = "true_cfg_scale"
    most_tokens = MOST_TOKENS
    # options of transformers that read more than this family shows them
    of_others: ClassVar[tuple[str, ...]] = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
    # its layout is that of diffusers
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn", "img_mlp", "txt_mlp"],
        "attn-only": ["attn"],
    }
    input_layers = ("img_in", "txt_in", "time_text_embed.timestep_embedder.linear_1")
    sample_defaults = QWEN.sample_defaults
    name_layers = staticmethod(qwen_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block has every kind of layer
        small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6]}
        return qwen_adapter_naming(empty_module(QwenImageTransformer2DModel, small))

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "vae":
            return read_wan_vae(path, module, dtype)
        if component == "text_encoder":
            return read_language_model(path, module, dtype, BESIDE_TEXT)
        return fill_from_file(path, module, dtype, NativeTensor)

    def check_layers(self) -> None:
        super().check_layers()
        config, expected = self.layers_of("transformer").config, 4 * self.layers_of("vae").config.z_dim
        others = [name for name in self.of_others if config.get(name)]
        if others or config.in_channels != expected:
            wrong = f"reads {config.in_channels} channels, expected {expected} as in {self.title}"
            what = f"has {others[0]}, which {self.title} has not" if others else wrong
            raise UserError(
                f"base_model_name: the transformer of {self.source.name} {what}. Models that "
                "edit images or draw layers read more than a caption: the first have their own model_type, QWEN_EDIT; "
                "the others can't be trained here."
            )

    # -- captions -------------------------------------------------------------------------------------------------

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        tokens = self.tokenize(captions, length, padding="longest", padding_side="right")
        hidden = self.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False
        ).last_hidden_state[:, self.cut_tokens :]
        mask = tokens.attention_mask[:, self.cut_tokens :].bool()
        return {"hidden": hidden * mask[..., None], "mask": mask}

    # -- training -------------------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        h, w = noised.shape[2:]
        mask = conditions["mask"]
        output = self.transformer(
            **self.image_tokens(noised, conditions),
            encoder_hidden_states=conditions["hidden"].to(noised.dtype),
            # attention without a mask is faster
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            timestep=level,
            return_dict=False,
        )[0]
        return self.image_of_tokens(output[:, : h * w], h, w)

    def image_tokens(self, noised: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the transformer for what it sees beside the text; those of the noised image come first."""
        b, _, h, w = noised.shape
        return {"hidden_states": noised.flatten(2).transpose(1, 2), "img_shapes": [[(1, h, w)]] * b}

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return QwenImagePipeline(scheduler, self.vae, None, None, self.transformer)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        # the pipeline cuts prompts that are read already
        return {**prompts, "max_sequence_length": MOST_TOKENS}

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the layout of diffusers, which all programs read."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), NativeTensor)
