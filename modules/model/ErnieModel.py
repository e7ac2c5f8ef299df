"""Ernie-Image and Ernie-Image-Turbo: a transformer with flow matching that reads image and caption as one sequence.

Captions are a layer of Ministral 3 (3B), whose half for images is not loaded; the VAE is that of Flux.2. Axes: `b`
batch, `c` channels of packed latents, `h w` their sides, `n` text tokens.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.BatchNormLatents import BatchNormLatents
from modules.model.cut_text import cut_text
from modules.model.ernie_keys import ernie_adapter_naming
from modules.model.families import ERNIE
from modules.model.flux2_files import fill_vae
from modules.model.LanguageTexts import LanguageTexts
from modules.model.ModelSource import ModelSource, empty_module
from modules.model.native_file import NativeTensor, fill_from_file, read_language_model
from modules.model.weights_file import WeightsFile
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
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from transformers import AutoTokenizer, BatchEncoding, Ministral3Model

# of the text encoder's hidden states, the last being the normalised one
HIDDEN_LAYER = -2
# the published VAE's config says 1e-4, but the model was trained with what diffusers' pipeline decodes with
NORM_EPSILON = 1e-5
# the text encoder's half for images
_VISION = ("vision_tower.", "multi_modal_projector.")
# ComfyUI's file has the tokenizer as a tensor
_BESIDE_TEXT = (*_VISION, "lm_head.weight", "tekken_model")


class ErnieTextEncoder(Ministral3Model):
    """The language model out of Mistral 3. What its files hold beside is left in them."""

    _keys_to_ignore_on_load_unexpected = [rf"(^|\.){name}" for name in _VISION]

    @classmethod
    def from_pretrained(cls, *place: Any, **options: Any) -> Any:
        """As of every model of transformers. In files its tensors stand below the name of this half."""
        names = {r"^(model\.)?language_model\.(model\.)?": ""}
        return super().from_pretrained(*place, key_mapping=names, **options)


class ErnieModel(BatchNormLatents, LanguageTexts):
    """The transformer is told 1000·σ and how long each caption is, which moves the places of the image."""

    model_types = ERNIE.model_types
    modules = {
        "transformer": ErnieImageTransformer2DModel,
        "text_encoder": ErnieTextEncoder,
        "vae": AutoencoderKLFlux2,
    }
    index_names = {"text_encoder": "Mistral3Model"}
    tokenizers = {"tokenizer": AutoTokenizer}
    hides_padding = True
    prompts_side_by_side = True
    # its layout is that of diffusers
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["layers"],
        "attn-mlp": ["self_attention", "mlp"],
        "attn-only": ["self_attention"],
    }
    input_layers = ("x_embedder.proj", "text_proj", "time_embedding.linear_1")
    output_layers = ("final_linear",)
    sample_defaults = ERNIE.sample_defaults
    latent_epsilon = NORM_EPSILON
    name_layers = staticmethod(ernie_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block has every kind of layer
        small = {"hidden_size": 16, "num_attention_heads": 1, "num_layers": 1, "ffn_hidden_size": 16}
        return ernie_adapter_naming(
            empty_module(ErnieImageTransformer2DModel, {**small, "rope_axes_dim": [4, 6, 6], "text_in_dim": 8})
        )

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file. A file of Ernie-Image holds one component: name a diffusers folder "
            "(or hub name) here, and files as transformer.model_name, text_encoder.model_name and vae.model_name."
        )

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "vae":
            return fill_vae(path, module, dtype)
        if component == "transformer":
            return fill_from_file(path, module, dtype, NativeTensor)
        names = WeightsFile(path).shapes
        # two models of the same size are published beside each other; ComfyUI's whole checkpoints lack this half
        if not any(name.startswith(("text_encoders.", *_VISION)) or f".{_VISION[0]}" in name for name in names):
            raise UserError(
                f"text_encoder.model_name: {path} has no half for images, as Ernie-Image's prompt enhancer, which has "
                "the sizes of the text encoder and other weights. Expected the text encoder, ministral-3-3b."
            )
        return read_language_model(path, module, dtype, _BESIDE_TEXT)

    # -- captions -------------------------------------------------------------------------------------------------

    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        return self.tokenizer([cut_text(caption) or self._nothing() for caption in captions], **options)

    def _nothing(self) -> str:
        """An empty caption, as a text that has a token also where the tokenizer marks no start."""
        if len(self.tokenizer([""], truncation=True, max_length=1)["input_ids"][0]):
            return ""
        return self.tokenizer.bos_token or self.tokenizer.convert_ids_to_tokens(0)

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        return self.read_layer(captions, length, HIDDEN_LAYER)

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length, HIDDEN_LAYER]

    # -- training -------------------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        return self.transformer(
            hidden_states=noised,
            timestep=1000 * level,
            text_bth=conditions["hidden"].to(noised.dtype),
            text_lens=conditions["mask"].sum(dim=1),
            return_dict=False,
        )[0]

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return ErnieImagePipeline(self.transformer, self.vae, None, None, scheduler)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: list(tensor) for name, tensor in prompts.items()}

    def image_of_tokens(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the layout of diffusers, which all programs read."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), NativeTensor)
