"""HiDream-I1: a transformer with experts and flow matching that reads text and image in one attention.

Two CLIPs sum a caption up, T5 reads it token by token, and of Llama 3.1 the transformer reads the hidden states of many
layers, another one in each block. Axes: `b` batch, `c` channels of latents, `h w` their sides, `n` text tokens, `k`
layers of Llama, `d` their width.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.families import HI_DREAM
from modules.model.FlowModel import FlowModel
from modules.model.hidream_experts import make_trainable
from modules.model.hidream_keys import hidream_adapter_naming
from modules.model.ModelSource import Brought, ModelSource, empty_module
from modules.model.native_file import NativeTensor, fill_from_file, read_clip, read_language_model, read_vae
from modules.model.ScaledLatents import ScaledLatents
from modules.model.T5Texts import T5Texts
from modules.model.unet_keys import COMFY_CLIPS
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CLIPS = ("text_encoder", "text_encoder_2")
T5, LLAMA = "text_encoder_3", "text_encoder_4"
# tokens of a caption that the CLIPs read at most, whatever the others read
CLIP_TOKENS = 218
# blocks of the published models: each has a layer of its own for the text
BLOCKS = 48
# the head, which the text encoder of this family has not
_TEXT_UNUSED = ("lm_head.weight",)


class HiDreamModel(ScaledLatents, T5Texts, FlowModel):
    """The transformer is told 1000 σ, and says x − ε: here that is turned around."""

    title = "HiDream"
    model_types = HI_DREAM.model_types
    modules = {
        "transformer": HiDreamImageTransformer2DModel,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "text_encoder_4": LlamaModel,
        "vae": AutoencoderKL,
    }
    index_names = {LLAMA: "LlamaForCausalLM"}
    tokenizers = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5TokenizerFast,
        "tokenizer_4": AutoTokenizer,
    }
    brought = {LLAMA: Brought("tokenizer_4", "Llama 3.1 8B Instruct")}
    trainable_components = ("transformer", *CLIPS, T5)
    long_text_encoder = T5
    prompt_tokens = 128
    # the published schedulers have one shift for all sizes
    shifts_any_model = False
    pipeline_arguments = {
        "hidden": "prompt_embeds_t5", "states": "prompt_embeds_llama3", "pooled": "pooled_prompt_embeds",
    }  # fmt: skip
    # the layout of diffusers is the original one
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["stream_block"],
        "attn-mlp": ["attn1", "ff_i"],
        "attn-only": ["attn1"],
    }
    input_layers = (
        "x_embedder.proj",
        "t_embedder.timestep_embedder.linear_1",
        "p_embedder.pooled_embedder.linear_1",
        *(f"caption_projection.{number}.linear" for number in range(BLOCKS + 1)),
    )
    output_layers = ("final_layer.linear",)
    sample_defaults = HI_DREAM.sample_defaults
    name_layers = staticmethod(hidream_adapter_naming)

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.components.on_load("transformer", make_trainable)
        tokenizer = self.tokenizer_of[LLAMA]
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            # it has no other, and captions of the published models were filled up with it
            tokenizer.pad_token = tokenizer.eos_token

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block of each kind has every kind of layer
        small = {"patch_size": 2, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "text_emb_dim": 16}
        small |= {"num_attention_heads": 1, "attention_head_dim": 16, "caption_channels": [16, 16]}
        transformer = empty_module(HiDreamImageTransformer2DModel, {**small, "llama_layers": [0, 0]})
        sides = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        encoders = {name: empty_module(cls.modules[name], CLIPTextConfig(**sides)) for name in CLIPS}
        t5 = T5Config(d_model=32, d_kv=32, d_ff=32, num_layers=1, num_heads=1, feed_forward_proj="gated-gelu")
        return hidream_adapter_naming(transformer, {**encoders, T5: empty_module(T5EncoderModel, t5)})

    # -- files ----------------------------------------------------------------------------------------------------

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "transformer":
            return fill_from_file(path, module, dtype, NativeTensor)
        if component == "vae":
            return read_vae(path, module, dtype)
        if component == T5:
            return self.read_t5(path, dtype)
        if component == LLAMA:
            return read_language_model(path, module, dtype, _TEXT_UNUSED)
        return read_clip(path, module, dtype, COMFY_CLIPS[CLIPS.index(component)])

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), NativeTensor)

    def check_layers(self) -> None:
        super().check_layers()
        last, layers = max(self.hidden_layers), self.layers_of(LLAMA).config.num_hidden_layers
        if last >= layers:
            raise UserError(
                f"{LLAMA}.model_name: the transformer reads layer {last + 1} of this text encoder, which has {layers}. "
                f"Take {self.brought[LLAMA].title}."
            )

    # -- captions -------------------------------------------------------------------------------------------------

    @property
    def patch(self) -> int:
        return self.layers_of("transformer").config.patch_size

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Which of Llama's layers the transformer reads, each once; 0 is the first one's output."""
        return tuple(sorted(set(self.layers_of("transformer").config.llama_layers)))

    def _lengths(self, length: int | None) -> dict[str, int]:
        """Tokens that each text encoder reads, where `length` are wanted."""
        own = self.t5_length(length)
        clips = {name: self.layers_of(name).config.max_position_embeddings for name in CLIPS}
        return {**{name: min(own, CLIP_TOKENS, places) for name, places in clips.items()}, T5: own, LLAMA: own}

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]`, `states` `[b, k, n, d]`, `pooled` `[b, both CLIPs' widths]`, each in its own format."""
        pooled, found = [], {}
        for component, most in self._lengths(length).items():
            tokens = self.tokens(component, captions, most).to(self.device)
            encoder, ids = self.components[component], tokens.input_ids
            if component in CLIPS:
                # as in the published models, what fills a caption up is not hidden from these
                pooled.append(encoder(ids).text_embeds)
            elif component == T5:
                found["hidden"] = encoder(ids, attention_mask=tokens.attention_mask).last_hidden_state
            else:
                states = encoder(
                    ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
                ).hidden_states
                # the first ones are the embeddings
                found["states"] = torch.stack([states[layer + 1] for layer in self.hidden_layers], dim=1)
        return {**found, "pooled": torch.cat(pooled, dim=-1)}

    def text_settings(self, component: str) -> list[Any]:
        length = self._lengths(self.text_length())[component]
        # the vocabulary does not tell what captions are filled up with
        return [length, self.hidden_layers, self.tokenizer_of[LLAMA].pad_token] if component == LLAMA else [length]

    def text_limits(self) -> dict[str, int]:
        # Llama's tokens begin with one that says so
        return {**super().text_limits(), LLAMA: self.t5_length(self.text_length()) - 1}

    def read_more(self, component: str, tokens: int) -> str:
        return super().read_more(T5, tokens)

    # -- training -------------------------------------------------------------------------------------------------

    def _by_layer(self, states: Tensor) -> Tensor:
        """`[b, k, n, d]` -> `[layers, b, n, d]`, by their numbers in Llama; those that nobody reads are another's."""
        own = self.hidden_layers
        places = [own.index(number) if number in own else 0 for number in range(own[-1] + 1)]
        states = states.transpose(0, 1)
        return states if len(places) == len(own) else states[places]

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        hidden, states, pooled = (conditions[name].to(noised.dtype) for name in ("hidden", "states", "pooled"))
        return -self.transformer(
            noised,
            timesteps=1000 * level,
            encoder_hidden_states_t5=hidden,
            encoder_hidden_states_llama3=self._by_layer(states),
            pooled_embeds=pooled,
            return_dict=False,
        )[0]

    # -- samples --------------------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return _AnySize(scheduler, self.vae, *[None] * 8, self.transformer)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: self._by_layer(own) if own.dim() == 4 else own for name, own in prompts.items()}


class _AnySize(HiDreamImagePipeline):
    """Draws images of the size that is asked for; diffusers' own makes all of them about a megapixel large."""

    def __call__(self, *, height: int, width: int, **options: Any) -> Any:
        # a trace more, as sides are rounded down
        self.default_sample_size = math.sqrt(height * width) / self.vae_scale_factor * (1 + 1e-9)
        return super().__call__(height=height, width=width, **options)
