"""What the small models of `tiny_components` are called with: one picture, a text of five tokens, a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

TEXT, TOKENS = 24, 5


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


def _text(width: int = TEXT) -> torch.Tensor:
    return _random(1, TOKENS, width)


def _time() -> torch.Tensor:
    return torch.tensor([0.5])


def _unet(component: nn.Module) -> dict[str, Any]:
    sizes = {"text_embeds": _random(1, 16), "time_ids": _random(1, 6)}
    told = {"added_cond_kwargs": sizes} if component.config.addition_embed_type else {}
    return {"sample": _random(1, 4, 8, 8), "timestep": _time(), "encoder_hidden_states": _text(16), **told}


def _sd3(component: nn.Module) -> dict[str, Any]:
    inputs = {"hidden_states": _random(1, 16, 8, 8), "encoder_hidden_states": _text()}
    return {**inputs, "pooled_projections": _random(1, TEXT), "timestep": _time()}


def _flux(component: nn.Module) -> dict[str, Any]:
    axes = len(component.config.axes_dims_rope)
    inputs = {
        "hidden_states": _random(1, 16, component.config.in_channels),
        "encoder_hidden_states": _text(),
        "timestep": _time(),
        "img_ids": torch.zeros(16, axes),
        "txt_ids": torch.zeros(TOKENS, axes),
    }
    pooled = {"pooled_projections": _random(1, TEXT)} if "pooled_projection_dim" in component.config else {}
    guided = {"guidance": _time()} if component.config.get("guidance_embeds") else {}
    return {**inputs, **pooled, **guided}


def _pixart(component: nn.Module) -> dict[str, Any]:
    side = component.config.sample_size
    sizes = (
        {"resolution": torch.ones(1, 2), "aspect_ratio": torch.ones(1, 1)}
        if component.use_additional_conditions
        else {}
    )
    kept = {"resolution": None, "aspect_ratio": None}
    inputs = {"hidden_states": _random(1, 4, side, side), "encoder_hidden_states": _text(), "timestep": _time()}
    return {**inputs, "added_cond_kwargs": {**kept, **sizes}}


def _sana(component: nn.Module) -> dict[str, Any]:
    inputs = {"hidden_states": _random(1, 32, 8, 8), "encoder_hidden_states": _text(), "timestep": _time()}
    return {**inputs, "guidance": _time()} if component.config.guidance_embeds else inputs


def _hunyuan(component: nn.Module) -> dict[str, Any]:
    return {
        "hidden_states": _random(1, 16, 1, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": torch.ones(1, TOKENS),
        "pooled_projections": _random(1, TEXT),
        "guidance": _time() if component.config.guidance_embeds else None,
    }


def _hidream(component: nn.Module) -> dict[str, Any]:
    return {
        "hidden_states": _random(1, 4, 8, 8),
        "timesteps": _time(),
        "encoder_hidden_states_t5": _text(),
        "encoder_hidden_states_llama3": _random(4, 1, TOKENS, 40),
        "pooled_embeds": _random(1, TEXT),
    }


def _cascade(component: nn.Module) -> dict[str, Any]:
    inputs = {"sample": _random(1, 16, 8, 8), "timestep_ratio": _time(), "clip_text_pooled": _random(1, 1, TEXT)}
    if component.config.clip_text_in_channels:
        return {**inputs, "clip_text": _text(), "clip_img": _random(1, 1, TEXT)}
    return {**inputs, "effnet": _random(1, 16, 8, 8), "pixels": _random(1, 3, 8, 8)}


def _qwen(component: nn.Module) -> dict[str, Any]:
    inputs = {
        "hidden_states": _random(1, 16, 64),
        "encoder_hidden_states": _text(),
        "encoder_hidden_states_mask": torch.ones(1, TOKENS, dtype=torch.bool),
        "timestep": _time(),
        "img_shapes": [[(1, 4, 4)]],
    }
    return {**inputs, "additional_t_cond": torch.tensor([0])} if component.config.use_additional_t_cond else inputs


def _z_image(component: nn.Module) -> dict[str, Any]:
    return {"x": [_random(16, 1, 8, 8)], "t": _time(), "cap_feats": [_random(TOKENS, TEXT)]}


def _ernie(component: nn.Module) -> dict[str, Any]:
    inputs = {"hidden_states": _random(1, 128, 8, 8), "timestep": _time()}
    return {**inputs, "text_bth": _text(), "text_lens": torch.tensor([TOKENS])}


def _ideogram(component: nn.Module) -> dict[str, Any]:
    return {
        "hidden_states": _random(1, 8, 128),
        "timestep": _time(),
        "encoder_hidden_states": _random(1, 8, 48),
        "position_ids": torch.zeros(1, 8, 3, dtype=torch.long),
        "segment_ids": torch.zeros(1, 8, dtype=torch.long),
        "indicator": torch.ones(1, 8, dtype=torch.long),
    }


def _krea(component: nn.Module) -> dict[str, Any]:
    return {
        "hidden_states": _random(1, 8, 64),
        "encoder_hidden_states": _random(1, TOKENS, 3, TEXT),
        "timestep": _time(),
        "position_ids": torch.zeros(8 + TOKENS, 3),
    }


def _cosmos(component: nn.Module) -> dict[str, Any]:
    text = _text(1024 if component.config.use_crossattn_projection else TEXT)
    if component.config.img_context_dim_in:
        text = (text, _random(1, 4, TEXT))
    return {"hidden_states": _random(1, 16, 1, 8, 8), "timestep": _time(), "encoder_hidden_states": text}


def _wuerstchen(component: nn.Module) -> dict[str, Any]:
    return {"x": _random(1, 16, 8, 8), "r": _time(), "c": _text()}


def _tokens(component: nn.Module) -> dict[str, Any]:
    return {"input_ids": torch.tensor([[3, 4, 5, 2]])}


INPUTS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux,
    "ChromaTransformer2DModel": _flux,
    "Transformer2DModel": _pixart,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "HiDreamImageTransformer2DModel": _hidream,
    "StableCascadeUNet": _cascade,
    "QwenImageTransformer2DModel": _qwen,
    "ZImageTransformer2DModel": _z_image,
    "ErnieImageTransformer2DModel": _ernie,
    "Ideogram4Transformer2DModel": _ideogram,
    "Krea2Transformer2DModel": _krea,
    "CosmosTransformer3DModel": _cosmos,
    "WuerstchenPrior": _wuerstchen,
    "CLIPTextModelWithProjection": _tokens,
    "LlamaForCausalLM": _tokens,
}
"""By class: the arguments for one of its models."""
