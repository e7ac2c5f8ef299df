"""Chroma: a transformer made of Flux.1 schnell's, with one network for all its modulations, and true guidance.

T5 alone reads captions. Of what fills a caption up, the transformer sees one token. Axes: `b` batch, `c` channels of
packed latents, `h w` their sides, `n` text tokens.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modules.model.chroma_keys import CHROMA_LAYOUT, chroma_adapter_naming
from modules.model.families import CHROMA
from modules.model.ModelSource import empty_module
from modules.model.native_file import fill_from_file, read_vae
from modules.model.PatchedLatents import PatchedLatents
from modules.model.T5Texts import T5Texts
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.enum.ModelFormat import ModelFormat

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from transformers import T5EncoderModel, T5TokenizerFast


class ChromaModel(PatchedLatents, T5Texts):
    """The transformer reads T5's tokens and is told the noise level.

    T5 sees no padding. The transformer sees the first token of it, with which the model was trained; OneTrainer lets T5
    see this one, too.
    """

    title = "Chroma"
    model_types = CHROMA.model_types
    modules = {"transformer": ChromaTransformer2DModel, "text_encoder": T5EncoderModel, "vae": AutoencoderKL}
    tokenizers = {"tokenizer": T5TokenizerFast}
    pipeline_arguments = {"hidden": "prompt_embeds", "mask": "prompt_attention_mask"}
    prompt_tokens = 512
    hides_padding = True
    file_formats = (ModelFormat.ORIGINAL_TRANSFORMER,)
    layer_filter_presets = {
        "full": [],
        "blocks": ["transformer_block"],
        # as OneTrainer's presets have it; the list of this name in its code lacks the last one
        "attn-mlp": ["attn", "ff.net", "proj_mlp"],
        "attn-only": ["attn"],
    }
    input_layers = (*PatchedLatents.input_layers, "distilled_guidance_layer.in_proj")
    sample_defaults = CHROMA.sample_defaults
    name_layers = staticmethod(chroma_adapter_naming)
    # of the call in progress, see `_checkpoint`
    _attention_mask: Tensor | None = None

    @classmethod
    @cache
    def planned_naming(cls) -> AdapterNaming:
        # one block of each kind has every kind of layer
        small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16}
        small |= {"approximator_layers": 1, "approximator_hidden_dim": 16, "axes_dims_rope": [4, 6, 6]}
        return chroma_adapter_naming(empty_module(ChromaTransformer2DModel, small))

    def read_component(self, path: Path, component: str, dtype: torch.dtype) -> nn.Module:
        if component == "text_encoder":
            return self.read_t5(path, dtype)
        empty = self.source.empty(component)
        if component == "vae":
            return read_vae(path, empty, dtype)
        module = fill_from_file(path, empty, dtype, CHROMA_LAYOUT.tensor)
        # which modulation is which, as waves: computed, and in no file
        own = module.time_text_embed
        waves = type(own)(module.config.approximator_num_channels // 4, len(own.mod_proj))
        module.time_text_embed = waves.to(dtype)
        return module

    # -- captions -------------------------------------------------------------------------------------------------

    def encode_text(self, captions: list[str], length: int | None) -> dict[str, Tensor]:
        """`hidden` `[b, n, d]` in the text encoder's format, and `mask` `[b, n]`; n is that of the longest text."""
        tokens = self.tokens("text_encoder", captions, self.t5_length(length))
        lengths = tokens.attention_mask.sum(dim=1)
        # none depends on how many follow
        ids, seen = (tensor[:, : int(lengths.max()) + 1] for tensor in (tokens.input_ids, tokens.attention_mask))
        encoder = self.components["text_encoder"]
        hidden = encoder(ids.to(self.device), attention_mask=seen.to(self.device)).last_hidden_state
        mask = (torch.arange(ids.shape[1]) <= lengths[:, None]).to(self.device)
        return {"hidden": hidden * mask[..., None], "mask": mask}

    # -- training -------------------------------------------------------------------------------------------------

    def set_gradient_checkpointing(self, component: str, enabled: bool) -> None:
        super().set_gradient_checkpointing(component, enabled)
        if enabled:
            self.components[component].enable_gradient_checkpointing(self._checkpoint)

    def _checkpoint(self, block: nn.Module, *arguments: Any) -> Any:
        # diffusers leaves the mask out where it checkpoints these
        if isinstance(block, ChromaSingleTransformerBlock):
            arguments = (*arguments, self._attention_mask)
        return checkpoint(block, *arguments, use_reentrant=False)

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        b, _, h, w = noised.shape
        hidden, text = conditions["hidden"].to(noised.dtype), conditions["mask"]
        # kernels without a mask are faster, and texts of one length need none
        mask = None if text.all() else torch.cat([text, text.new_ones(b, h * w)], dim=1)
        self._attention_mask = mask
        output = self.transformer(
            **self.tokens_and_places(noised, hidden.shape[1]),
            encoder_hidden_states=hidden,
            timestep=level,
            attention_mask=mask,
            return_dict=False,
        )[0]
        self._attention_mask = None
        return self.image_of_tokens(output, h, w)

    # -- samples and files ----------------------------------------------------------------------------------------

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return ChromaPipeline(scheduler, self.vae, None, None, self.transformer)

    def checkpoint_tensors(self, model_format: ModelFormat) -> list[CheckpointTensor]:
        """The transformer alone, in the original layout."""
        return checkpoint_tensors("transformer", self.layers_of("transformer").state_dict(), CHROMA_LAYOUT.tensor)
