"""Z-Image and Z-Image-Turbo: a transformer with flow matching that reads captions and image as one sequence.

Captions are a layer of Qwen3, without what fills up shorter ones. Axes: `b` batch, `c` channels of latents, `h w` their
sides, `n` text tokens.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.ChatTexts import ChatTexts
from modules.model.families import Z_IMAGE
from modules.model.ModelSource import ModelSource, empty_module
from modules.model.native_file import NativeTensor, fill_from_file, read_language_model, read_vae
from modules.model.ScaledLatents import ScaledLatents
from modules.model.zimage_keys import UNUSED, native_tensor, zimage_adapter_naming
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
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import AutoTokenizer, Qwen3Model

# of the text encoder's hidden states, the last being the normalised one
HIDDEN_LAYER = -2
# the head, which the text encoder of this family has not
_TEXT_UNUSED = ("lm_head.weight",)


class ZImageModel(ScaledLatents, ChatTexts):
    """The transformer is told 1 − σ, and says x − ε: here both are turned around."""

    model_types = Z_IMAGE.model_types
    modules = {"transformer": ZImageTransformer2DModel, "text_encoder": Qwen3Model, "vae": AutoencoderKL}
    tokenizers = {"tokenizer": AutoTokenizer}
    template = {"add_generation_prompt": True, "enable_thinking": True}
    # both as ComfyUI reads them
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER, ModelFormat.COMFY_TRANSFORMER)
    layer_filter_presets = {
        "full": [],
        "blocks": ["layers"],
        # regular expressions, as OneTrainer has them
        "attn-mlp": ["^(?=.*attention)(?!.*refiner).*", "^(?=.*feed_forward)(?!.*refiner).*"],
        "attn-only": ["^(?=.*attention)(?!.*refiner).*"],
    }
    input_layers = ("all_x_embedder.2-1", "cap_embedder.1", "t_embedder.mlp.0")
    output_layers = ("all_final_layer.2-1.linear",)
    hides_padding = True
    sample_defaults = Z_IMAGE.sample_defaults
    name_layers = staticmethod(zimage_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block of each kind has every kind of layer
        small = {"dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 1, "n_kv_heads": 1, "cap_feat_dim": 16}
        return zimage_adapter_naming(empty_module(ZImageTransformer2DModel, {**small, "axes_dims": [4, 6, 6]}))

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file. A file of Z-Image holds one component: name a diffusers folder (or "
            "hub name) here, and files as transformer.model_name, text_encoder.model_name and vae.model_name."
        )

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "vae":
            return read_vae(path, module, dtype)
        if component == "transformer":
            return fill_from_file(path, module, dtype, native_tensor, UNUSED)
        return read_language_model(path, module, dtype, _TEXT_UNUSED)

    # -- captions -------------------------------------------------------------------------------------------------

    def chat(self, caption: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": caption}]

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        return self.read_layer(captions, length, HIDDEN_LAYER)

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length, HIDDEN_LAYER, self.chat(""), self.template]

    # -- training -------------------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        lengths = conditions["mask"].sum(dim=1).tolist()
        texts = conditions["hidden"].to(noised.dtype)
        output = self.transformer(
            # an image is a video of one frame
            list(noised[:, :, None]),
            # rounded as in the pipeline, since the transformer takes it a thousandfold
            (1000 - 1000 * level) / 1000,
            [text[:length] for text, length in zip(texts, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(output)[:, :, 0]

    # -- samples --------------------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return ZImagePipeline(scheduler, self.vae, None, None, self.transformer)

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: list(tensor) for name, tensor in prompts.items()}

    def pipeline_guidance(self, scale: float) -> float:
        # p + g·(p − n) is n + s·(p − n) with g = s − 1
        return max(0.0, scale - 1)

    # -- files ----------------------------------------------------------------------------------------------------

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the layout of the original code, which is diffusers', or in ComfyUI's."""
        place_of = native_tensor if model_format == ModelFormat.COMFY_TRANSFORMER else NativeTensor
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), place_of)
