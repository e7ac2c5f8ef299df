"""Sana: a transformer with linear attention and flow matching, on latents of 32 × 32 pixels each.

Captions are read by Gemma 2 behind an instruction, of which only two tokens are kept. Axes: `b` batch, `c` channels of
latents, `h w` their sides, `n` text tokens, `d` the text encoder's width.
"""

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from modules.model.cut_text import cut_text
from modules.model.families import SANA
from modules.model.LanguageTexts import LanguageTexts
from modules.model.ModelSource import ModelSource, empty_module, scheduler_class
from modules.model.native_file import NativeTensor, fill_from_file, read_language_model
from modules.model.sana_keys import SANA_LAYOUT, sana_adapter_naming
from modules.model.TransformerModel import of_one_length
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from diffusers import AutoencoderDC, DiffusionPipeline, SanaPipeline, SanaTransformer2DModel, SchedulerMixin
from transformers import AutoTokenizer, BatchEncoding, Gemma2Model

# the text that the models were trained with, before the caption
INSTRUCTION = "\n".join((
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image "
    "generation. Evaluate the level of detail in the user prompt:",
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
    "relationships to create vivid and concrete scenes.",
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.",
    "Here are examples of how to transform or refine prompts:",
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
    "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
    "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
    "skyscrapers.",
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary "
    "or evaluations:",
    "User Prompt: ",
))  # fmt: skip
# more tokens than it has
_LONGEST_INSTRUCTION = 512
# what files of the transformer hold beside: places, which are not used, and the caption that is none
_UNUSED = ("pos_embed", "y_embedder.y_embedding")


class SanaModel(LanguageTexts):
    """The transformer is told 1000·σ, and says ε − x."""

    title = "Sana"
    model_types = SANA.model_types
    modules = {"transformer": SanaTransformer2DModel, "text_encoder": Gemma2Model, "vae": AutoencoderDC}
    tokenizers = {"tokenizer": AutoTokenizer}
    prompt_tokens = 300
    # the published schedulers have one shift for all sizes
    shifts_by_size = False
    hides_padding = True
    prompts_side_by_side = True
    without_xformers = "captions of different lengths need a mask, with which that library was not tried here"
    pipeline_arguments = {"hidden": "prompt_embeds", "mask": "prompt_attention_mask"}
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        "attn-mlp": ["attn1", "attn2", "ff."],
        "attn-only": ["attn1", "attn2"],
    }
    input_layers = ("patch_embed.proj", "caption_projection.linear_1", "time_embed.emb.timestep_embedder.linear_1")
    sample_defaults = SANA.sample_defaults
    name_layers = staticmethod(sana_adapter_naming)

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block has every kind of layer
        small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "num_cross_attention_heads": 1}
        small |= {"cross_attention_head_dim": 16, "cross_attention_dim": 16, "caption_channels": 16, "in_channels": 4}
        return sana_adapter_naming(empty_module(SanaTransformer2DModel, small))

    def _scheduler_config(self, source: ModelSource) -> dict[str, Any]:
        found = source.scheduler_config()
        if not (found.get("use_flow_sigmas") or "shift" in found):
            raise UserError(
                f"The base model {source.name} has no flow-matching scheduler: its scheduler_config.json has neither "
                "use_flow_sigmas nor shift. Download it again."
            )
        return found

    @classmethod
    def open_file(cls, path: Path, config: TrainConfig) -> ModelSource:
        raise UserError(
            f"base_model_name: {path} is a file, which has no tokenizer. Name a diffusers folder (or hub name) of "
            f"{cls.title} here, and files as transformer.model_name, text_encoder.model_name and vae.model_name."
        )

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        module = self.source.empty(component)
        if component == "text_encoder":
            module = read_language_model(path, module, dtype, ("lm_head.weight",))
            # computed, and in no file
            module.embed_tokens.embed_scale = torch.tensor(module.config.hidden_size**0.5)
            return module
        layout = SANA_LAYOUT.tensor if component == "transformer" else NativeTensor
        return fill_from_file(path, module, dtype, layout, _UNUSED)

    def check_layers(self) -> None:
        super().check_layers()
        if self.layers_of("transformer").config.guidance_embeds:
            raise UserError(
                f"The transformer of {self.source.name} is told its guidance, as in Sana Sprint, which is distilled to "
                "few steps and can't be trained here. Choose a model of Sana."
            )

    # -- images ---------------------------------------------------------------------------------------------------

    @property
    def image_grid(self) -> int:
        """Pixels of one token; 32 in the published models."""
        sides = 2 ** (len(self.layers_of("vae").config.encoder_block_out_channels) - 1)
        return sides * self.layers_of("transformer").config.patch_size

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b, 3, H, W]` -> latents `[b, c, h, w]`; this VAE has no posterior."""
        return self.pack_latents(self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent.float())

    def pack_latents(self, latents: Tensor) -> Tensor:
        return latents * self.vae.config.scaling_factor

    def unpack_latents(self, latents: Tensor) -> Tensor:
        return latents / self.vae.config.scaling_factor

    @property
    def packing(self) -> str:
        return f"{self.layers_of('vae').config.scaling_factor}"

    def image_of_tokens(self, latents: Tensor, height: int, width: int) -> Tensor:
        return latents

    # -- captions -------------------------------------------------------------------------------------------------

    def read(self, captions: Sequence[str], **options: Any) -> BatchEncoding:
        return self.tokenizer([INSTRUCTION + self._clean(caption) for caption in captions], **options)

    @staticmethod
    def _clean(caption: str) -> str:
        """In small letters, as diffusers' pipeline has it."""
        return cut_text(caption).lower().strip()

    @cached_property
    def cut_tokens(self) -> int:
        """Those of the instruction but for the first and the last, which the transformer sees."""
        own = self.tokenizer([INSTRUCTION], truncation=True, max_length=_LONGEST_INSTRUCTION)["input_ids"]
        return len(own[0]) - 2

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text.

        An empty caption stands alone, as the prompt does that samples are steered away from.
        """
        rows: dict[int, Tensor] = {}
        for instructed in (True, False):
            places = [place for place, caption in enumerate(captions) if bool(caption.strip()) == instructed]
            own = self._rows([captions[place] for place in places], length, instructed)
            rows |= dict(zip(places, own, strict=True))
        states = [rows[place] for place in range(len(captions))]
        lengths = torch.tensor([len(row) for row in states], device=self.device)
        hidden = pad_sequence(states, batch_first=True)
        return {"hidden": hidden, "mask": torch.arange(hidden.shape[1], device=self.device) < lengths[:, None]}

    def _rows(self, captions: list[str], length: int | None, instructed: bool) -> list[Tensor]:
        """Hidden states `[n, d]` of each caption, behind the instruction or alone."""
        if not captions:
            return []
        options = {"padding": "longest", "padding_side": "right"}
        if instructed:
            tokens = self.tokenize(captions, length, **options)
        else:
            texts, most = list(map(self._clean, captions)), length or self.prompt_tokens
            tokens = self.tokenizer(texts, return_tensors="pt", truncation=True, max_length=most, **options)
            tokens = tokens.to(self.device)
        output = self.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False
        ).last_hidden_state
        rows = []
        for states, count in zip(output, tokens.attention_mask.sum(dim=1).tolist(), strict=True):
            seen = states[:count]
            rows.append(torch.cat([seen[:1], seen[1 + self.cut_tokens :]]) if instructed else seen)
        return rows

    def text_length(self, sample: SampleConfig | None = None) -> int:
        """At most as many as the published models were trained with: the option's default is that of other families."""
        return min(super().text_length(sample) or self.prompt_tokens, self.prompt_tokens)

    def read_more(self, component: str, tokens: int) -> str:
        return super().read_more(component, tokens) if tokens + 2 <= self.prompt_tokens else ""

    def text_settings(self, component: str) -> list[Any]:
        return [self.text_length(), INSTRUCTION]

    # -- training and samples -------------------------------------------------------------------------------------

    def call_transformer(self, noised: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        mask = conditions["mask"]
        return self.transformer(
            noised,
            encoder_hidden_states=conditions["hidden"].to(noised.dtype),
            timestep=1000 * time * self.transformer.config.timestep_scale,
            # kernels without a mask are faster, and texts of one length need none
            encoder_attention_mask=None if bool(mask.all()) else mask,
            return_dict=False,
        )[0]

    def pipeline(self, steps: int) -> DiffusionPipeline:
        """The family's pipeline with the model's own scheduler, whatever the number of steps."""
        kind = scheduler_class(self.source.scheduler_config().get("_class_name") or "DPMSolverMultistepScheduler")
        pipeline = self.make_pipeline(kind.from_config(self.scheduler_config))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def make_pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        return SanaPipeline(None, None, self.vae, self.transformer, scheduler)

    def encode_prompts(self, sample: SampleConfig) -> dict[str, Tensor]:
        """The prompt stands behind the instruction, and that which it steers away from alone."""
        length, found = self.text_length(sample), {}
        for start, text, instructed in (("", sample.prompt, True), ("negative_", sample.negative_prompt, False)):
            (row,) = self._rows([text], length, instructed)
            found[f"{start}prompt_embeds"] = row[None]
            found[f"{start}prompt_attention_mask"] = torch.ones(1, len(row), dtype=torch.bool, device=self.device)
        return found

    def pipeline_prompts(self, prompts: Mapping[str, Tensor]) -> dict[str, Any]:
        # sizes stay as they are asked for, and the second prompt comes encoded, too
        return {**of_one_length(prompts), "negative_prompt": None, "use_resolution_binning": False}
