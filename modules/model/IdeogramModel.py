"""Ideogram 4: a transformer with flow matching that reads captions and image as one sequence.

Captions are thirteen layers of Qwen3-VL (8B), whose half for images is not loaded; the VAE is that of Flux.2. Samples
are steered by a second transformer, which sees no caption, is not trained, and waits elsewhere while steps are taken.
Axes: `b` batch, `c` channels of packed latents, `h w` their sides, `l` tokens of an image, `n` text tokens, `d` width
of captions.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.BatchNormLatents import BatchNormLatents
from modules.model.ChatTexts import ChatTexts
from modules.model.DrawingPipeline import DrawingPipeline, Velocity
from modules.model.families import IDEOGRAM
from modules.model.ideogram_keys import ideogram_adapter_naming, native_tensor
from modules.model.ModelSource import ModelSource, empty_module
from modules.model.native_file import fill_from_file, read_language_model
from modules.model.PatchedLatents import token_places
from modules.model.QwenTexts import BESIDE_TEXT, Qwen3VLText
from modules.model.TransformerModel import unquantized_dtype
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Ideogram4Transformer2DModel
from diffusers.models.transformers.transformer_ideogram4 import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from diffusers.utils.torch_utils import randn_tensor
from transformers import AutoTokenizer

# layers of the text encoder whose outputs are a caption, before the norm behind the last one
LAYERS = (*range(0, 36, 3), 35)
# pixels of an image whose noise levels are not shifted
UNSHIFTED = 512 * 512
# of the noise levels of samples: the spread of their logits, and the ends of these
SPREAD, LOWEST, HIGHEST = 1.5, -7.5, 9.0


class IdeogramModel(BatchNormLatents, ChatTexts):
    """The transformer is told 1 − σ, and says x − ε: here both are turned around."""

    title = "Ideogram 4"
    model_types = IDEOGRAM.model_types
    modules = {
        "transformer": Ideogram4Transformer2DModel,
        "text_encoder": Qwen3VLText,
        "unconditional_transformer": Ideogram4Transformer2DModel,
        "vae": AutoencoderKLFlux2,
    }
    index_names = {"text_encoder": "Qwen3VLModel"}
    tokenizers = {"tokenizer": AutoTokenizer}
    template = {"add_generation_prompt": True}
    resting = ("vae", "unconditional_transformer")
    prompt_tokens = 2048
    most_tokens = 2048
    hides_padding = True
    steers_away = False
    pipeline_arguments = {"hidden": "prompt_embeds", "mask": "prompt_embeds_mask"}
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["layers"],
        "attn-mlp": ["attention", "feed_forward"],
        "attn-only": ["attention"],
    }
    input_layers = ("input_proj", "llm_cond_proj", "t_embedding.mlp_in")
    output_layers = ("final_layer.linear",)
    sample_defaults = IDEOGRAM.sample_defaults
    name_layers = staticmethod(ideogram_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block has every kind of layer
        small = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 1, "intermediate_size": 16}
        sizes = {"in_channels": 16, "adaln_dim": 8, "llm_features_dim": 16, "mrope_section": [4, 2, 2]}
        return ideogram_adapter_naming(empty_module(Ideogram4Transformer2DModel, {**small, **sizes}))

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file. A file of {cls.title} holds one component: name a diffusers folder "
            "(or hub name) here, and files as transformer.model_name, unconditional_transformer.model_name and "
            "text_encoder.model_name."
        )

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        if component == "vae":
            raise UserError(
                f"vae.model_name: {path} has the statistics of Flux.2's latents, those of {self.title} stand in its "
                "diffusers folder. Leave vae.model_name empty, or name the folder of another such model."
            )
        module = self.source.empty(component)
        if component == "text_encoder":
            return read_language_model(path, module, dtype, BESIDE_TEXT)
        module, config = fill_from_file(path, module, dtype, native_tensor), module.config
        # frequencies are computed, and in no file
        module.rotary_emb = type(module.rotary_emb)(config.attention_head_dim, config.rope_theta, config.mrope_section)
        return module

    def check_layers(self) -> None:
        super().check_layers()
        denoisers, encoder = ("transformer", "unconditional_transformer"), self.layers_of("text_encoder").config
        given = len(LAYERS) * encoder.hidden_size
        if encoder.num_hidden_layers <= max(LAYERS):
            raise UserError(
                f"The text encoder of {self.source.name} has {encoder.num_hidden_layers} layers, but captions are "
                f"layers up to number {max(LAYERS) + 1}. Take the text encoder that belongs to the model."
            )
        for name in denoisers:
            if (read := self.layers_of(name).config.llm_features_dim) != given:
                raise UserError(
                    f"The {name} of {self.source.name} reads captions of {read} numbers, but the text encoder gives "
                    f"{len(LAYERS)} layers of {encoder.hidden_size}. Take both from one model."
                )

    # -- captions and images --------------------------------------------------------------------------------------

    def chat(self, caption: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "text", "text": caption}]}]

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        tokens = self.tokenize(captions, length, padding="longest", padding_side="right")
        with outputs_of(self.text_encoder.layers, LAYERS) as states:
            self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
        mask = tokens.attention_mask.bool()
        # the layers of one number stand side by side
        return {"hidden": torch.stack(states, dim=-1).flatten(2) * mask[..., None], "mask": mask}

    def text_settings(self, component: str) -> list[Any]:
        return [self.config.text_encoder_sequence_length, LAYERS, self.chat(""), self.template]

    def patches(self, latents: Tensor) -> Tensor:
        """The channels of one pixel stand side by side."""
        patches = super().patches(latents)
        return patches.unflatten(1, (latents.shape[1], -1)).transpose(1, 2).flatten(1, 2)

    def from_patches(self, patches: Tensor) -> Tensor:
        pixels = self.vae.config.patch_size[0] ** 2
        return super().from_patches(patches.unflatten(1, (pixels, -1)).transpose(1, 2).flatten(1, 2))

    @property
    def packing(self) -> str:
        return f"{super().packing} by pixels"

    # -- training -------------------------------------------------------------------------------------------------

    def shift_of_size(self, tokens: int) -> float:
        """As diffusers' pipeline shifts the noise levels of samples."""
        return math.sqrt(tokens * self.image_grid**2 / UNSHIFTED)

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        h, w = noised.shape[2:]
        hidden = conditions["hidden"].to(noised.dtype)
        output = velocity(
            self.transformer, noised.flatten(2).transpose(1, 2), level, (h, w), hidden, conditions["mask"]
        )
        return self.image_of_tokens(output, h, w)

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> "IdeogramPipeline":
        return IdeogramPipeline(self, scheduler)

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the layout of the original code, which is ComfyUI's."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), native_tensor)


class IdeogramPipeline(DrawingPipeline):
    """Draws latents as diffusers' `Ideogram4Pipeline` does, which reads prompts with a text encoder of its own."""

    def __init__(self, model: IdeogramModel, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__(scheduler, model.image_grid)
        self.model = model

    def __call__(
        self,
        *,
        prompt_embeds: Tensor,
        prompt_embeds_mask: Tensor,
        height: int,
        width: int,
        guidance_scale: float,
        num_inference_steps: int,
        generator: torch.Generator,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]],
        output_type: str,
    ) -> None:
        """Draws one image; `callback_on_step_end` gets its latents `[1, l, c]`. A guidance scale of 1 is none."""
        model, (h, w) = self.model, (height // self.grid, width // self.grid)

        def of(component: str, texts: Tensor, mask: Tensor) -> Velocity:
            def ask(latents: Tensor, level: Tensor) -> Tensor:
                own = model.components[component]
                dtype = unquantized_dtype(own)
                return velocity(own, latents.to(dtype), level, (h, w), texts.to(dtype), mask).float()

            return ask

        toward = of("transformer", prompt_embeds, prompt_embeds_mask)
        away = of("unconditional_transformer", prompt_embeds[:, :0], prompt_embeds_mask[:, :0])
        shape = (1, h * w, model.transformer.config.in_channels)
        noise = randn_tensor(shape, generator=generator, device=model.device, dtype=torch.float32)
        sigmas = noise_levels(num_inference_steps, model.shift_of_size(h * w))
        self.draw(noise, sigmas, toward, away, guidance_scale, callback_on_step_end)


def noise_levels(steps: int, shift: float) -> list[float]:
    """Noise level at the start of each step of a sample: quantiles of a logit-normal distribution, from the highest.

    σ(s) = sigmoid(ln shift + `SPREAD`·Φ⁻¹(s)) at s = 1, 1 − 1/steps …, with logits from `LOWEST` to `HIGHEST`.
    """
    quantiles = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)[1:].flip(0)
    logits = math.log(shift) + SPREAD * torch.special.ndtri(quantiles)
    return logits.clamp(LOWEST, HIGHEST).sigmoid().float().tolist()


@contextmanager
def outputs_of(layers: nn.ModuleList, chosen: tuple[int, ...]) -> Iterator[list[Tensor]]:
    """Meanwhile calls of the chosen layers add what they give to the list, in their order."""
    found: list[Tensor] = []
    hooks = [layers[number].register_forward_hook(lambda _, __, output: found.append(output)) for number in chosen]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def captions_read(transformer: nn.Module) -> Iterator[None]:
    """Meanwhile a transformer takes captions that its first two layers for them have read.

    In diffusers these layers read a place for each token of the image, too, which is zero and twelve times as wide as
    the transformer.
    """
    own = transformer.llm_cond_norm, transformer.llm_cond_proj
    transformer.llm_cond_norm, transformer.llm_cond_proj = nn.Identity(), nn.Identity()
    try:
        yield
    finally:
        transformer.llm_cond_norm, transformer.llm_cond_proj = own


def velocity(
    transformer: nn.Module, tokens: Tensor, level: Tensor, size: tuple[int, int], hidden: Tensor, mask: Tensor
) -> Tensor:
    """ε − x of an image's tokens.

    Args:
        transformer: an `Ideogram4Transformer2DModel`.
        tokens: `[b, l, c]` in its format.
        level: σ `[b]`.
        size: `h w`.
        hidden: captions `[b, n, d]`; n may be 0.
        mask: `[b, n]`, where a caption has tokens.
    """
    b, n = mask.shape
    count, device = tokens.shape[1], tokens.device
    texts = transformer.llm_cond_proj(transformer.llm_cond_norm(hidden))
    places = token_places(*size, device).long() + IMAGE_POSITION_OFFSET
    steps = torch.arange(n, device=device)[:, None].expand(n, 3)
    seen = torch.cat([mask, mask.new_ones(b, count)], dim=1)
    images = torch.full((b, count), OUTPUT_IMAGE_INDICATOR, device=device)
    # rounded as in the pipeline, unless each operation has its own format
    time = 1 - level if torch.is_autocast_enabled(device.type) else (1 - level).to(tokens.dtype)
    with captions_read(transformer):
        output = transformer(
            hidden_states=torch.cat([tokens.new_zeros(b, n, tokens.shape[2]), tokens], dim=1),
            timestep=time.expand(b),
            encoder_hidden_states=torch.cat([texts, texts.new_zeros(b, count, texts.shape[2])], dim=1),
            position_ids=torch.cat([steps, places]).expand(b, -1, -1),
            segment_ids=torch.where(seen, 1, SEQUENCE_PADDING_INDICATOR),
            indicator=torch.cat([mask * LLM_TOKEN_INDICATOR, images], dim=1),
            return_dict=False,
        )[0]
    return -output[:, n:]
