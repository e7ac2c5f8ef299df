"""Stable Diffusion 1.5 and 2.x, and every model of the same components: CLIP text encoder, UNet, KL autoencoder."""

from contextlib import nullcontext

from modules.model.ClipTexts import join_chunks, layer_output
from modules.model.families import STABLE_DIFFUSION
from modules.model.UNetModel import UNetModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ModelType import ModelType

import torch
from torch import Tensor, nn

from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

# what model managers call the architecture, and kohya the base version
FILE_NAMES = {
    ModelType.STABLE_DIFFUSION_15: ("stable-diffusion-v1", "sd_v1"),
    ModelType.STABLE_DIFFUSION_20_BASE: ("stable-diffusion-v2-512", "sd_v2"),
    ModelType.STABLE_DIFFUSION_21_BASE: ("stable-diffusion-v2-512", "sd_v2"),
    ModelType.STABLE_DIFFUSION_20: ("stable-diffusion-v2-768-v", "sd_v2_v"),
    ModelType.STABLE_DIFFUSION_21: ("stable-diffusion-v2-768-v", "sd_v2_v"),
}


class StableDiffusionModel(UNetModel):
    """The UNet reads the text encoder's last hidden state."""

    model_types = STABLE_DIFFUSION.model_types
    modules = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}
    tokenizers = {"tokenizer": CLIPTokenizer}
    embedding_keys = {"text_encoder": "emb_params"}
    sample_defaults = STABLE_DIFFUSION.sample_defaults
    file_names = FILE_NAMES
    pipeline_class = StableDiffusionPipeline

    @property
    def text_encoder(self) -> nn.Module:
        return self.components["text_encoder"]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        return self.tokenizer_of["text_encoder"]

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        with nullcontext() if self.text_encoder_trained else torch.no_grad():
            own = self.config
            return {"hidden": self._encode(captions, own.text_encoder_layer_skip, own.text_encoder_sequence_length)}

    def _encode(self, captions: list[str], skip: int, length: int | None) -> Tensor:
        chunks = self.chunks_of(captions, {"text_encoder": length})
        tokens = self.tokens("text_encoder", captions, length, chunks)
        if not skip:
            return join_chunks(self.text_encoder(tokens).last_hidden_state.float(), chunks)
        states = self.text_encoder(tokens, output_hidden_states=True).hidden_states
        inner = getattr(self.text_encoder, "text_model", self.text_encoder)
        return join_chunks(inner.final_layer_norm(layer_output("text_encoder", states, skip)).float(), chunks)

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        # where a sample says nothing of its own, it reads prompts as the training reads captions
        skip = sample.text_encoder_1_layer_skip or self.config.text_encoder_layer_skip
        length = sample.text_encoder_1_sequence_length or self.config.text_encoder_sequence_length
        hidden, negative = self._encode([sample.prompt, sample.negative_prompt], skip, length).split(1)
        return {"hidden": hidden, "negative": negative}

    def make_pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae, unet=self.unet, scheduler=scheduler, text_encoder=None, tokenizer=None, safety_checker=None,
            feature_extractor=None, image_encoder=None, requires_safety_checker=False,
        )  # fmt: skip
