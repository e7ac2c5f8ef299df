"""Flux.2: dev, which is told its guidance, and the smaller Klein models.

A transformer with flow matching on packed latents; captions are inner layers of a language model, Mistral in dev and
Qwen in Klein. Axes: `b` batch, `c` channels of packed latents, `h w` their sides, `n` text tokens, `l` all tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.BatchNormLatents import BatchNormLatents
from modules.model.ChatTexts import ChatTexts
from modules.model.families import FLUX_2
from modules.model.flux2_files import fill_transformer, fill_vae
from modules.model.flux2_keys import FLUX_2_LAYOUT, flux2_adapter_naming
from modules.model.ModelSource import FolderSource, ModelSource, empty_module
from modules.model.StandardSource import StandardSource
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
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
from transformers import (
    AutoTokenizer,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    Qwen3ForCausalLM,
)


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


class Flux2Model(BatchNormLatents, ChatTexts):
    """The transformer reads inner layers of a language model, and is told its noise level as its timestep.

    `transformer.guidance_scale` is told to models that are distilled for guidance.
    """

    model_types = FLUX_2.model_types
    variants = tuple(
        {"transformer": Flux2Transformer2DModel, "text_encoder": encoder, "vae": AutoencoderKLFlux2}
        for encoder in VARIANTS
    )
    modules = variants[0]
    # dev's folder holds a processor for images and text, of which this is the half that is needed
    tokenizers = {"tokenizer": AutoTokenizer}
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn", "ff"],
        "attn-only": ["attn"],
    }
    sample_defaults = FLUX_2.sample_defaults
    name_layers = staticmethod(flux2_adapter_naming)

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        assert isinstance(source, FolderSource | StandardSource)
        self.modules = {name: source.classes[name] for name in type(self).modules}
        super().__init__(config, source, device)
        self.variant = VARIANTS[self.modules["text_encoder"]]

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

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        fill = {"transformer": fill_transformer, "vae": fill_vae}.get(component)
        if fill is None:
            return super().read_component(path, component, dtype)
        return fill(path, self.source.empty(component), dtype)

    # -- captions -------------------------------------------------------------------------------------------------

    def chat(self, caption: str) -> list[dict[str, Any]]:
        return self.variant.chat(caption)

    @property
    def template(self) -> Mapping[str, bool]:
        return self.variant.template

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format."""
        layers = self.variant.layers
        tokens = self.tokenize(captions, length, padding="max_length")
        # without the head, whose scores for every word of the vocabulary nobody needs
        states = self.text_encoder.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        if len(states) <= max(layers):
            raise UserError(
                f"The text encoder has {len(states) - 1} layers, but captions of this model are its layers "
                f"{', '.join(map(str, layers))}. Take the text encoder that belongs to the model."
            )
        return {"hidden": torch.cat([states[layer] for layer in layers], dim=-1)}

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length, self.variant.layers, self.variant.chat("")]

    # -- training -------------------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        b, _, h, w = noised.shape
        transformer, hidden, guidance = self.transformer, conditions["hidden"].to(noised.dtype), None
        if transformer.config.guidance_embeds:
            guidance = torch.full((b,), self.config.transformer.guidance_scale, device=self.device)
        output = transformer(
            hidden_states=noised.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            timestep=level,
            guidance=guidance,
            img_ids=_places(h, w, 1, self.device),
            txt_ids=_places(1, 1, hidden.shape[1], self.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (h, w))

    # -- samples --------------------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        # a Klein that is distilled to few steps takes no guidance
        assert isinstance(self.source, FolderSource | StandardSource)
        distilled = self.source.index().get("is_distilled")
        options = {} if distilled is None else {"is_distilled": distilled}
        return self.variant.pipeline(
            scheduler=scheduler, vae=self.vae, text_encoder=None, tokenizer=None, transformer=self.transformer,
            **options,
        )  # fmt: skip

    @property
    def steers_away(self) -> bool:
        return self.variant.negative

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the original layout."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), FLUX_2_LAYOUT.tensor)

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
