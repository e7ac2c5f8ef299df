"""Small models of every class that OneTrainer trains as a whole.

What a class has in some models only, such as a guidance embedder, one of its models here has.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import diffusers
import transformers
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
ROPE = {"axes_dims_rope": (4, 6, 6)}
UNET = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
}
SIZES = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
PIXART = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 2,
    "cross_attention_dim": 48,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
}
PIXART |= {"num_embeds_ada_norm": 10, "norm_type": "ada_norm_single", "caption_channels": 24}
CASCADE = {
    "block_out_channels": (32, 32),
    "num_attention_heads": (2, 2),
    "conditioning_dim": 32,
    "timestep_ratio_embedding_dim": 8,
    "down_num_layers_per_block": (2, 2),
    "up_num_layers_per_block": (2, 2),
    "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
}
Z_IMAGE = {"dim": 96, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24, "axes_dims": [16, 16, 16]}
COSMOS = {**HEADS, "num_layers": 2, "text_embed_dim": 24, "adaln_lora_dim": 8, "max_size": (4, 8, 8)}
COSMOS |= {"concat_padding_mask": False}
LLM = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
LLM |= {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CLIP = {key: value for key, value in LLM.items() if key != "num_key_value_heads"}
SEEING = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}

DIFFUSERS: dict[str, list[dict[str, Any]]] = {
    "UNet2DConditionModel": [UNET, {**UNET, **SIZES}],
    "SD3Transformer2DModel": [
        {
            **HEADS,
            "num_layers": 2,
            "caption_projection_dim": 32,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 24,
            "sample_size": 16,
        }
    ],
    "FluxTransformer2DModel": [
        {**HEADS, **ROPE, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24, "guidance_embeds": told}
        | {"pooled_projection_dim": 24}
        for told in (False, True)
    ],
    "Flux2Transformer2DModel": [
        {**HEADS, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24, "guidance_embeds": told}
        | {"axes_dims_rope": (4, 4, 4, 4)}
        for told in (False, True)
    ],
    "ChromaTransformer2DModel": [
        {**HEADS, **ROPE, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24}
        | {"approximator_hidden_dim": 32, "approximator_layers": 2}
    ],
    "Transformer2DModel": [{**PIXART, "sample_size": 32}, {**PIXART, "sample_size": 128}],
    "PixArtTransformer2DModel": [{**PIXART, "sample_size": 32}, {**PIXART, "sample_size": 128}],
    "SanaTransformer2DModel": [
        {**HEADS, "num_layers": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "sample_size": 8}
        | {"cross_attention_dim": 32, "caption_channels": 24, "guidance_embeds": told}
        for told in (False, True)
    ],
    "HunyuanVideoTransformer3DModel": [
        {**HEADS, "num_layers": 2, "num_single_layers": 2, "text_embed_dim": 24, "guidance_embeds": told}
        | {"pooled_projection_dim": 24, "rope_axes_dim": (4, 6, 6)}
        for told in (False, True)
    ],
    "HiDreamImageTransformer2DModel": [
        {**HEADS, "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "text_emb_dim": 24}
        | {
            "caption_channels": [24, 40],
            "axes_dims_rope": (8, 4, 4),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1, 2, 3],
        }
    ],
    "StableCascadeUNet": [
        {**CASCADE, "clip_text_in_channels": 24, "clip_text_pooled_in_channels": 24, "clip_image_in_channels": 24},
        {**CASCADE, "clip_text_pooled_in_channels": 24, "effnet_in_channels": 16, "pixel_mapper_in_channels": 3},
    ],
    "QwenImageTransformer2DModel": [
        {**HEADS, **ROPE, "num_layers": 2, "joint_attention_dim": 24, "use_additional_t_cond": told}
        for told in (False, True)
    ],
    "ZImageTransformer2DModel": [
        Z_IMAGE,
        {**Z_IMAGE, "all_patch_size": (2, 4), "all_f_patch_size": (1, 1), "siglip_feat_dim": 24},
    ],
    "ErnieImageTransformer2DModel": [
        {"hidden_size": 96, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64, "text_in_dim": 24}
        | {"rope_axes_dim": (16, 16, 16)}
    ],
    "Ideogram4Transformer2DModel": [
        {**HEADS, "num_layers": 2, "intermediate_size": 64, "adaln_dim": 16, "llm_features_dim": 48}
        | {"mrope_section": (4, 2, 2)}
    ],
    "Krea2Transformer2DModel": [
        {**HEADS, "num_layers": 2, "num_key_value_heads": 1, "intermediate_size": 64, "timestep_embed_dim": 8}
        | {"text_hidden_dim": 24, "num_text_layers": 3, "text_num_attention_heads": 2, "text_intermediate_size": 48}
        | {"text_num_key_value_heads": 2, "axes_dims_rope": (4, 6, 6)}
    ],
    "CosmosTransformer3DModel": [
        COSMOS,
        {
            **COSMOS,
            "extra_pos_embed_type": None,
            "use_crossattn_projection": True,
            "encoder_hidden_states_channels": 24,
            "img_context_dim_in": 24,
            "img_context_dim_out": 32,
        },
    ],
}
TRANSFORMERS: dict[str, Any] = {
    "CLIPTextModel": lambda: transformers.CLIPTextConfig(**CLIP),
    "CLIPTextModelWithProjection": lambda: transformers.CLIPTextConfig(**CLIP),
    "T5EncoderModel": lambda: transformers.T5Config(
        vocab_size=100, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2
    ),
    "Gemma2Model": lambda: transformers.Gemma2Config(**LLM, head_dim=16),
    "LlamaModel": lambda: transformers.LlamaConfig(**LLM),
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(**LLM),
    "Qwen2_5_VLForConditionalGeneration": lambda: transformers.Qwen2_5_VLConfig(text_config=LLM, vision_config=SEEING),
}
CLASSES = (*DIFFUSERS, *TRANSFORMERS, "WuerstchenPrior")


def tiny_components(kind: str, device: str = "meta") -> Iterator[nn.Module]:
    """Models of a class, by its name."""
    makers: list[Callable[[], nn.Module]]
    if kind == "WuerstchenPrior":
        makers = [lambda: WuerstchenPrior(c_cond=24, c_r=8, c=32, depth=2, nhead=2)]
    elif kind in TRANSFORMERS:
        makers = [lambda: getattr(transformers, kind)(TRANSFORMERS[kind]())]
    else:
        makers = [partial(getattr(diffusers, kind), **config) for config in DIFFUSERS[kind]]
    for make in makers:
        with torch.device(device):
            component = make()
        yield component
