"""Stable Diffusion XL 1.0 and its fine-tunes (two CLIP text encoders, UNet with micro-conditioning, KL autoencoder)."""

from collections.abc import Mapping
from contextlib import nullcontext

from modules.model.ClipTexts import join_chunks, layer_output, side_by_side
from modules.model.families import STABLE_DIFFUSION_XL
from modules.model.UNetModel import UNetModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ModelType import ModelType

import torch
from torch import Tensor

from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class StableDiffusionXLModel(UNetModel):
    """The UNet reads both encoders' last but one hidden states side by side, the second one's pooled and projected
    output, and where the image was cut from (arXiv 2307.01952, section 2.2)."""

    model_types = STABLE_DIFFUSION_XL.model_types
    modules = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "vae": AutoencoderKL,
    }
    tokenizers = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    embedding_keys = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    trainable_components = ("unet", "text_encoder", "text_encoder_2")
    sample_defaults = STABLE_DIFFUSION_XL.sample_defaults
    file_names = {ModelType.STABLE_DIFFUSION_XL_10_BASE: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")}
    # the base model was trained without the last one
    unused_layers = 1
    pipeline_class = StableDiffusionXLPipeline

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        own = self.config
        with nullcontext() if self.text_encoder_trained else torch.no_grad():
            return self._encode(
                captions,
                (own.text_encoder_layer_skip, own.text_encoder_2_layer_skip),
                (own.text_encoder_sequence_length, own.text_encoder_2_sequence_length),
            )

    def _encode(
        self, captions: list[str], skips: tuple[int, int], lengths: tuple[int | None, int | None]
    ) -> dict[str, Tensor]:
        """`hidden` `[b, tokens, both widths]` and `pooled` `[b, width of the projection]`, float32."""
        hidden, chunks = [], self.chunks_of(captions, dict(zip(self.tokenizer_of, lengths, strict=True)))
        for component, skip, length in zip(self.tokenizer_of, skips, lengths, strict=True):
            encoded = self.components[component](
                self.tokens(component, captions, length, chunks), output_hidden_states=True
            )
            states = layer_output(component, encoded.hidden_states, skip, self.unused_layers).float()
            hidden.append(join_chunks(states, chunks))
        # the summary of a long caption is that of its first chunk, as in ComfyUI and kohya's trainers
        return {"hidden": side_by_side(hidden, "SDXL"), "pooled": encoded.text_embeds[::chunks].float()}

    def added_conditions(self, conditions: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        # pixels stay float32: they go through sines, and bfloat16 has no 1023
        return {"text_embeds": conditions["pooled"].to(dtype), "time_ids": conditions["placement"]}

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        own = self.config
        # where a sample says nothing of its own, it reads prompts as the training reads captions
        skips = (
            sample.text_encoder_1_layer_skip or own.text_encoder_layer_skip,
            sample.text_encoder_2_layer_skip or own.text_encoder_2_layer_skip,
        )
        lengths = (
            sample.text_encoder_1_sequence_length or own.text_encoder_sequence_length,
            sample.text_encoder_2_sequence_length or own.text_encoder_2_sequence_length,
        )
        encoded = self._encode([sample.prompt, sample.negative_prompt], skips, lengths)
        (hidden, negative), (pooled, negative_pooled) = (encoded[name].split(1) for name in ("hidden", "pooled"))
        return {"hidden": hidden, "negative": negative, "pooled": pooled, "negative_pooled": negative_pooled}

    def prompt_arguments(self, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            **super().prompt_arguments(prompts),
            "pooled_prompt_embeds": prompts["pooled"],
            "negative_pooled_prompt_embeds": prompts["negative_pooled"],
        }

    def make_pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline(
            vae=self.vae, unet=self.unet, scheduler=scheduler, text_encoder=None, text_encoder_2=None, tokenizer=None,
            tokenizer_2=None, add_watermarker=False,
        )  # fmt: skip
