"""Krea 2: a transformer with flow matching on packed latents that reads captions and image as one sequence.

Captions are twelve layers of Qwen3-VL, whose half for images is not loaded; the transformer joins them itself. Latents
are those of Qwen-Image. Axes: `b` batch, `c` channels of packed latents, `h w` their sides, `n` text tokens, `k` layers
of the text encoder, `d` their width.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from modules.model.cut_text import cut_text
from modules.model.families import KREA_2
from modules.model.krea2_keys import krea2_adapter_naming, native_tensor
from modules.model.ModelSource import FolderSource, empty_module
from modules.model.native_file import fill_from_file, read_language_model
from modules.model.PatchedLatents import token_places
from modules.model.QwenLatents import QwenLatents
from modules.model.QwenTexts import AFTER, BEFORE, BESIDE_TEXT, Qwen3VLText, QwenTexts
from modules.model.StandardSource import StandardSource
from modules.model.TransformerModel import of_one_length
from modules.model.WanLatents import read_wan_vae
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from transformers import AutoTokenizer, BatchEncoding

# of the text encoder's hidden states, where model_index.json names no others; 0 are the embeddings
HIDDEN_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
# the logarithm of the shift of a model that is distilled to few steps, whatever the size of an image
DISTILLED_SHIFT = 1.15
# tokens behind the caption, which are kept when it is cut
AFTER_TOKENS = 5


class Krea2Model(QwenTexts, QwenLatents):
    """The transformer is told σ, and says ε − x."""

    title = "Krea 2"
    model_types = KREA_2.model_types
    modules = {
        "transformer": Krea2Transformer2DModel,
        "text_encoder": Qwen3VLText,
        "vae": AutoencoderKLQwenImage,
    }
    index_names = {"text_encoder": "Qwen3VLModel"}
    tokenizers = {"tokenizer": AutoTokenizer}
    pipeline_arguments = {"hidden": "prompt_embeds", "mask": "prompt_embeds_mask"}
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_blocks"],
        "attn-mlp": ["attn", "ff"],
        "attn-only": ["attn"],
    }
    input_layers = ("img_in", "txt_in.linear_1", "time_embed.linear_1")
    output_layers = ("final_layer.linear",)
    sample_defaults = KREA_2.sample_defaults
    name_layers = staticmethod(krea2_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block of each kind has every kind of layer
        small = {"num_layers": 1, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
                 "attention_head_dim": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 16,
                 "text_hidden_dim": 16, "text_num_attention_heads": 1, "text_num_key_value_heads": 1,
                 "text_intermediate_size": 16, "axes_dims_rope": [4, 6, 6]}  # fmt: skip
        return krea2_adapter_naming(empty_module(Krea2Transformer2DModel, small))

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "vae":
            return read_wan_vae(path, module, dtype)
        if component == "text_encoder":
            return read_language_model(path, module, dtype, BESIDE_TEXT)
        return fill_from_file(path, module, dtype, native_tensor)

    def check_layers(self) -> None:
        super().check_layers()
        config, encoder = self.layers_of("transformer").config, self.layers_of("text_encoder").config
        read, given = (config.num_text_layers, config.text_hidden_dim), (len(self.hidden_layers), encoder.hidden_size)
        if read != given or max(self.hidden_layers) > encoder.num_hidden_layers:
            raise UserError(
                f"The transformer of {self.source.name} reads {read[0]} layers of {read[1]} numbers of a text encoder, "
                f"but captions are the layers {', '.join(map(str, self.hidden_layers))} of one with "
                f"{encoder.num_hidden_layers} layers of {encoder.hidden_size} numbers. Take the text encoder that "
                "belongs to the model."
            )

    def set_gradient_checkpointing(self, component: str, enabled: bool) -> None:
        super().set_gradient_checkpointing(component, enabled)
        fusion = self.components[component].text_fusion if enabled else None
        # diffusers leaves these out, which take `k` tokens for each token of a caption
        for block in (*fusion.layerwise_blocks, *fusion.refiner_blocks) if fusion else ():
            block.forward = partial(checkpoint, type(block).forward.__get__(block), use_reentrant=False)

    def _option(self, name: str) -> Any:
        """What `model_index.json` says of the pipeline; None: nothing."""
        assert isinstance(self.source, FolderSource | StandardSource)
        return self.source.index().get(name)

    # -- captions -------------------------------------------------------------------------------------------------

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Which of the text encoder's hidden states the transformer reads."""
        return tuple(self._option("text_encoder_select_layers") or HIDDEN_LAYERS)

    def tokenize(self, captions: Sequence[str], length: int | None, **options: Any) -> BatchEncoding:
        """Of a text that is too long the caption loses its end, and not what stands behind it."""
        most = (length or self.prompt_tokens) + self.cut_tokens - AFTER_TOKENS
        options = {**options, "return_tensors": "pt", "truncation": True}
        texts = self.tokenizer([f"{BEFORE}{cut_text(caption)}" for caption in captions], max_length=most, **options)
        ends = self.tokenizer([AFTER] * len(captions), max_length=AFTER_TOKENS, **options)
        joined = {name: torch.cat([texts[name], ends[name]], dim=1) for name in ("input_ids", "attention_mask")}
        if not joined["attention_mask"].all():
            # what fills texts up moves behind them, where no token sees it
            order = joined["attention_mask"].argsort(dim=1, descending=True, stable=True)
            joined = {name: tensor.gather(1, order) for name, tensor in joined.items()}
        return BatchEncoding(joined).to(self.device)

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, k, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        tokens = self.tokenize(captions, length, padding="longest", padding_side="right")
        states = self.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        mask = tokens.attention_mask[:, self.cut_tokens :].bool()
        hidden = torch.stack([states[layer][:, self.cut_tokens :] for layer in self.hidden_layers], dim=2)
        return {"hidden": hidden * mask[..., None, None], "mask": mask}

    def text_settings(self, component: str) -> list[Any]:
        return [*super().text_settings(component), self.hidden_layers]

    # -- training -------------------------------------------------------------------------------------------------

    @property
    def is_distilled(self) -> bool:
        """Whether the model draws in few steps, without guidance."""
        return bool(self._option("is_distilled"))

    def shift_of_size(self, tokens: int) -> float:
        return math.exp(DISTILLED_SHIFT) if self.is_distilled else super().shift_of_size(tokens)

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        h, w = noised.shape[2:]
        hidden, mask = conditions["hidden"].to(noised.dtype), conditions["mask"]
        # all of the text is at one place; an image has rows and columns
        places = token_places(h, w, self.device)
        output = self.transformer(
            hidden_states=noised.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            timestep=level,
            position_ids=torch.cat([places.new_zeros(hidden.shape[1], 3), places]),
            # attention without a mask is faster
            encoder_attention_mask=None if bool(mask.all()) else mask,
            return_dict=False,
        )[0]
        return self.image_of_tokens(output, h, w)

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return Krea2Pipeline(scheduler, self.vae, None, None, self.transformer, is_distilled=self.is_distilled)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        """Both prompts as long as the longer one: the pipeline has one row of places for them."""
        return of_one_length(prompts)

    def pipeline_guidance(self, scale: float) -> float:
        # p + g·(p − n) is n + s·(p − n) with g = s − 1
        return max(0.0, scale - 1)

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the layout of the original code, which is ComfyUI's."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), native_tensor)
