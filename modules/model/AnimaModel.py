"""Anima: a transformer of Cosmos-Predict2 with flow matching, to which each token of a caption is a query of its own.

Captions are read twice: Qwen3 (0.6B) gives hidden states, and to a text conditioner the tokens of T5 are queries to
these. The VAE is that of Qwen-Image. Axes: `b` batch, `c` channels of latents, `h w` their sides, `n` tokens of T5,
`d` width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.anima_keys import BESIDE_TRANSFORMER, CONDITIONER, LAYOUT, anima_adapter_naming, native_tensor
from modules.model.AnimaPipeline import AnimaPipeline
from modules.model.cut_text import cut_text
from modules.model.families import ANIMA
from modules.model.LanguageTexts import LanguageTexts
from modules.model.ModelSource import ComponentFile, FolderSource, ModelSource, empty_module
from modules.model.native_file import NativeTensor, fill_from_file, read_language_model
from modules.model.WanLatents import WanLatents, read_wan_vae
from modules.model.weights_file import WeightsFile
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers import (
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.configuration_utils import FrozenDict
from transformers import AutoTokenizer, BatchEncoding, Qwen3Model

# tokens of a caption that the transformer is given, however many it has: the rest are zeros
PLACES = 512


class AnimaModel(WanLatents, LanguageTexts):
    """The transformer is told σ, and says ε − x."""

    title = "Anima"
    model_types = ANIMA.model_types
    modules = {
        "transformer": CosmosTransformer3DModel,
        "text_encoder": Qwen3Model,
        "text_conditioner": AnimaTextConditioner,
        "vae": AutoencoderKLQwenImage,
    }
    tokenizers = {"tokenizer": AutoTokenizer, "t5_tokenizer": AutoTokenizer}
    shifts_any_model = False
    most_tokens = PLACES
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn1", "attn2", "ff"],
        "attn-only": ["attn1", "attn2"],
    }
    input_layers = ("patch_embed.proj", "time_embed.t_embedder.linear_1")
    sample_defaults = ANIMA.sample_defaults
    name_layers = staticmethod(anima_adapter_naming)

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.tokenizer_of = {
            component: source.tokenizer(name)
            for component, name in (("text_encoder", "tokenizer"), ("text_conditioner", "t5_tokenizer"))
        }

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block has every kind of layer
        small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "extra_pos_embed_type": None}
        return anima_adapter_naming(empty_module(CosmosTransformer3DModel, small))

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file, which has no tokenizer. Name a diffusers folder (or hub name) of "
            f"{cls.title} here, and files as transformer.model_name, text_encoder.model_name and vae.model_name; the "
            "text conditioner is read from the transformer's file."
        )

    def replacement(self, component: str) -> FolderSource | ComponentFile | None:
        """The text conditioner belongs to a transformer, and stands in its file."""
        own = super().replacement(component)
        if component != "text_conditioner" or own:
            return own
        whole = super().replacement("transformer")
        if isinstance(whole, ComponentFile) and any(CONDITIONER in name for name in _names(whole.path(self.hub))):
            return whole
        return None

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "vae":
            return read_wan_vae(path, module, dtype)
        if component == "text_encoder":
            return read_language_model(path, module, dtype, ("lm_head.weight",))
        if component == "text_conditioner":
            return with_frequencies(fill_from_file(path, module, dtype, NativeTensor))
        return fill_from_file(path, module, dtype, native_tensor, BESIDE_TRANSFORMER)

    def check_layers(self) -> None:
        super().check_layers()
        transformer, conditioner, encoder, vae = (
            self.layers_of(name).config for name in ("transformer", "text_conditioner", "text_encoder", "vae")
        )
        given = (transformer.text_embed_dim, conditioner.source_dim, transformer.in_channels)
        wanted = (conditioner.target_dim, encoder.hidden_size, vae.z_dim)
        if given != wanted or transformer.use_crossattn_projection or transformer.img_context_dim_in:
            raise UserError(
                f"base_model_name: the components of {self.source.name} do not fit each other: the transformer reads "
                f"captions of {given[0]} numbers and {given[2]} channels, the text conditioner gives {wanted[0]} and "
                f"reads {given[1]} of the text encoder's {wanted[1]}, the VAE has {wanted[2]} channels. Take all of "
                "them from one model of Anima."
            )

    # -- captions -------------------------------------------------------------------------------------------------

    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        return self.tokenizer([cut_text(caption) for caption in captions], **options)

    def words(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        """The tokens of T5, which end with one that says so."""
        return self.tokenizer_of["text_conditioner"]([cut_text(caption) for caption in captions], **options)

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text conditioner's format, and `mask` `[b, n]`; n is that of the longest text."""
        padding = {"padding": "longest", "padding_side": "right"}
        tokens = self.tokenize(captions, length, **padding)
        # empty captions have no token: one that nobody sees stands for them
        ids, seen = (F.pad(t, (0, not t.shape[1])) for t in (tokens.input_ids, tokens.attention_mask))
        hidden = self.text_encoder(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        seen = seen.bool()
        hidden = torch.where(seen[..., None], hidden, 0)
        # what is zero adds nothing, and attention to nothing at all would be no number
        seen = seen | ~seen.any(dim=1, keepdim=True)
        most = {"truncation": True, "max_length": length or self.prompt_tokens, "return_tensors": "pt"}
        words = self.words(captions, **padding, **most).to(self.device)
        conditioner = self.components["text_conditioner"]
        given = conditioner(hidden.to(conditioner.dtype), words.input_ids, words.attention_mask, seen)
        mask = words.attention_mask.bool()
        return {"hidden": given[:, : mask.shape[1]], "mask": mask}

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length, PLACES]

    def text_limits(self) -> dict[str, int]:
        # one token of T5 says where the caption ends
        return {**(limits := super().text_limits()), "text_conditioner": limits["text_encoder"] - 1}

    def count_tokens(self, component: str, texts: Sequence[str]) -> list[int]:
        if component == "text_encoder":
            return super().count_tokens(component, texts)
        return [len(ids) for ids in self.words(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    def read_more(self, component: str, tokens: int) -> str:
        wanted = tokens + (component == "text_conditioner")
        return f"text_encoder_sequence_length to {wanted}" if wanted <= PLACES else ""

    # -- training -------------------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        hidden = conditions["hidden"].to(noised.dtype)
        transformer, b = self.transformer, len(noised)
        masked = transformer.config.concat_padding_mask
        with mask_given(transformer):
            output = transformer(
                hidden_states=noised[:, :, None],
                timestep=level,
                # the transformer sees the zeros behind a caption, too
                encoder_hidden_states=F.pad(hidden, (0, 0, 0, PLACES - hidden.shape[1])),
                condition_mask=noised.new_zeros(b, 1, 1, *noised.shape[2:]) if masked else None,
                return_dict=False,
            )[0]
        return output[:, :, 0]

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> AnimaPipeline:
        def velocity(latents: Tensor, level: Tensor, prompt: Tensor) -> Tensor:
            return self.call_transformer(latents.to(self.transformer_dtype), level, {"hidden": prompt})

        channels = self.transformer.config.in_channels
        return AnimaPipeline(scheduler, velocity, channels, self.image_grid // 2, self.device)

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer in the layout of the original code, and the text conditioner, without which it can't draw."""
        start, parts = LAYOUT.file_prefix, {name: self.layers_of(name).state_dict() for name in self.modules}
        return [
            *checkpoint_tensors(
                "transformer", parts["transformer"], lambda name: NativeTensor(start + native_tensor(name).name)
            ),
            *checkpoint_tensors(
                "text_conditioner", parts["text_conditioner"], lambda name: NativeTensor(start + CONDITIONER + name)
            ),
        ]


@cache
def _names(path: Path) -> frozenset[str]:
    """Of a file's tensors."""
    return frozenset(WeightsFile(path).shapes)


@contextmanager
def mask_given(transformer: nn.Module) -> Iterator[None]:
    """Meanwhile the mask of an image's padding is a channel that is given, and not one that the transformer scales.

    Diffusers scales it with torchvision, which nothing else needs. An image here has no padding: its mask is zero.
    """
    own = transformer._internal_dict
    transformer._internal_dict = FrozenDict({**own, "concat_padding_mask": False})
    try:
        yield
    finally:
        transformer._internal_dict = own


def with_frequencies(conditioner: nn.Module) -> nn.Module:
    """The conditioner with its table of frequencies, which is computed, and in no file."""
    rotary = conditioner.rotary_emb
    conditioner.rotary_emb = type(rotary)(2 * len(rotary.inv_freq))
    return conditioner
