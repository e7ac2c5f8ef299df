"""First and last layers of the models that OneTrainer trains as a whole: they step as such.

Inputs enter a component by its first layers: latents, text states, pooled text, the time, sizes, the guidance. Its
prediction leaves it by its last layers. What shifts and scales inside is hidden. So are layers of repeated blocks,
also where text enters each block anew.
"""

import re
from dataclasses import dataclass
from functools import cache

from scaled_optim.description import WRAPPERS

from torch import nn
from torch.nn.modules.conv import _ConvNd

# the first layers of diffusers' embedders of the time and of what is told beside it
TIME = "time_text_embed.timestep_embedder.linear_1"
POOLED = "time_text_embed.text_embedder.linear_1"
GUIDANCE = "time_text_embed.guidance_embedder.linear_1"
PIXART_TIME = tuple(f"adaln_single.emb.{what}_embedder.linear_1" for what in ("timestep", "resolution", "aspect_ratio"))


@dataclass(frozen=True)
class Ends:
    """The first and last layers of a class, by their paths in it; `*` is any name between two dots.

    Some models of a class lack some of them.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]


PIXART = Ends(("pos_embed.proj", "caption_projection.linear_1", *PIXART_TIME), ("proj_out",))
ENDS: dict[str, Ends] = {
    # Stable Diffusion, SDXL
    "UNet2DConditionModel": Ends(("conv_in", "time_embedding.linear_1", "add_embedding.linear_1"), ("conv_out",)),
    "SD3Transformer2DModel": Ends(("pos_embed.proj", "context_embedder", TIME, POOLED), ("proj_out",)),
    "FluxTransformer2DModel": Ends(("x_embedder", "context_embedder", TIME, POOLED, GUIDANCE), ("proj_out",)),
    "Flux2Transformer2DModel": Ends(
        (
            "x_embedder",
            "context_embedder",
            "time_guidance_embed.timestep_embedder.linear_1",
            "time_guidance_embed.guidance_embedder.linear_1",
        ),
        ("proj_out",),
    ),
    "ChromaTransformer2DModel": Ends(
        ("x_embedder", "context_embedder", "distilled_guidance_layer.in_proj"), ("proj_out",)
    ),
    # PixArt, by the class that its first files name and by its own
    "Transformer2DModel": PIXART,
    "PixArtTransformer2DModel": PIXART,
    "SanaTransformer2DModel": Ends(
        (
            "patch_embed.proj",
            "caption_projection.linear_1",
            "time_embed.emb.timestep_embedder.linear_1",
            "time_embed.timestep_embedder.linear_1",
            "time_embed.guidance_embedder.linear_1",
        ),
        ("proj_out",),
    ),
    "HunyuanVideoTransformer3DModel": Ends(
        (
            "x_embedder.proj",
            "context_embedder.proj_in",
            f"context_embedder.{TIME}",
            f"context_embedder.{POOLED}",
            TIME,
            POOLED,
            GUIDANCE,
        ),
        ("proj_out",),
    ),
    "HiDreamImageTransformer2DModel": Ends(
        (
            "x_embedder.proj",
            "caption_projection.*.linear",
            "t_embedder.timestep_embedder.linear_1",
            "p_embedder.pooled_embedder.linear_1",
        ),
        ("final_layer.linear",),
    ),
    "WuerstchenPrior": Ends(("projection", "cond_mapper.0"), ("out.1",)),
    # Stable Cascade
    "StableCascadeUNet": Ends(
        (
            "embedding.1",
            "clip_txt_pooled_mapper",
            "clip_txt_mapper",
            "clip_img_mapper",
            "effnet_mapper.0",
            "pixels_mapper.0",
        ),
        ("clf.1",),
    ),
    "QwenImageTransformer2DModel": Ends(("img_in", "txt_in", TIME), ("proj_out",)),
    "ZImageTransformer2DModel": Ends(
        ("all_x_embedder.*", "cap_embedder.1", "siglip_embedder.1", "t_embedder.mlp.0"), ("all_final_layer.*.linear",)
    ),
    "ErnieImageTransformer2DModel": Ends(
        ("x_embedder.proj", "text_proj", "time_embedding.linear_1"), ("final_linear",)
    ),
    "Ideogram4Transformer2DModel": Ends(("input_proj", "llm_cond_proj", "t_embedding.mlp_in"), ("final_layer.linear",)),
    "Krea2Transformer2DModel": Ends(("img_in", "txt_in.linear_1", "time_embed.linear_1"), ("final_layer.linear",)),
    # Anima
    "CosmosTransformer3DModel": Ends(
        ("patch_embed.proj", "crossattn_proj.0", "img_context_proj.0", "time_embed.t_embedder.linear_1"), ("proj_out",)
    ),
    # text encoders; what most begin with is a table of embeddings, and they end with a block
    "CLIPTextModel": Ends((), ()),
    "CLIPTextModelWithProjection": Ends((), ("text_projection",)),
    "T5EncoderModel": Ends((), ()),
    "Gemma2Model": Ends((), ()),
    "LlamaModel": Ends((), ()),
    "LlamaForCausalLM": Ends((), ("lm_head",)),
    "Qwen2_5_VLForConditionalGeneration": Ends(("model.visual.patch_embed.proj",), ("lm_head",)),
}
"""By the name of the class that diffusers or transformers has a component in."""


def ends_of(component: nn.Module) -> Ends | None:
    """The first and last layers that a component has, by their full paths; None for an unknown class."""
    ends = ENDS.get(type(component).__name__)
    if ends is None:
        return None
    layers = [
        WRAPPERS.sub("", name) for name, module in component.named_modules() if isinstance(module, nn.Linear | _ConvNd)
    ]
    return Ends(_matching(ends.first, layers), _matching(ends.last, layers))


def _matching(paths: tuple[str, ...], layers: list[str]) -> tuple[str, ...]:
    return tuple(layer for layer in layers if any(_pattern(path).fullmatch(layer) for path in paths))


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\*", r"[^.]+"))
