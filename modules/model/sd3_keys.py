"""How files call the layers of Stable Diffusion 3 and 3.5: adapter files, and the single files that people download.

Native names are joint_blocks, whose two halves x_block and context_block are for the image and the text. There each
attention has one layer for query, key and value; in diffusers they are three. The last modulation, and that of the last
block's text, give shift before scale; in diffusers scale comes first.
"""

from collections.abc import Mapping
from functools import cache

from modules.model.NativeLayout import NativeLayout
from modules.model.unet_keys import COMFY_CLIPS, clip_naming, flat, layer_paths
from modules.util.AdapterNaming import AdapterNaming, LayerId
from modules.util.CheckpointTensor import THIRDS
from modules.util.enum.ModelFormat import ModelFormat

from torch import nn

_LAST_TEXT = "context_block.adaLN_modulation.1"
_INSIDE = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": _LAST_TEXT,
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    # of the image alone, in the first blocks of 3.5 medium
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_STACKS = {
    "x_block.attn.qkv": dict(zip(("attn.to_q", "attn.to_k", "attn.to_v"), THIRDS, strict=True)),
    "context_block.attn.qkv": dict(zip(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), THIRDS, strict=True)),
    "x_block.attn2.qkv": dict(zip(("attn2.to_q", "attn2.to_k", "attn2.to_v"), THIRDS, strict=True)),
}
_T5 = "t5xxl"


@cache
def sd3_layout(blocks: int) -> NativeLayout:
    """The layout of a transformer with so many blocks."""
    last = blocks - 1
    return NativeLayout(
        model="Stable Diffusion 3",
        outside={
            "pos_embed.proj": "x_embedder.proj",
            "context_embedder": "context_embedder",
            "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
            "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
            "proj_out": "final_layer.linear",
        },
        swapped={
            "norm_out.linear": "final_layer.adaLN_modulation.1",
            f"transformer_blocks.{last}.norm1_context.linear": f"joint_blocks.{last}.{_LAST_TEXT}",
        },
        blocks={"transformer_blocks": "joint_blocks"},
        inside={"transformer_blocks": _INSIDE},
        fused={"transformer_blocks": _STACKS},
        tensors={"pos_embed.pos_embed": "pos_embed"},
        comfy_prefixes=("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"),
    )


def sd3_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module], component: str = "transformer"
) -> AdapterNaming:
    """The key map of a model of Stable Diffusion 3 or 3.5.

    Args:
        transformer: an `SD3Transformer2DModel`, may be on the meta device.
        text_encoders: component name -> text encoder: the small CLIP, the large one, T5.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    own = sd3_layout(len(transformer.transformer_blocks)).adapter_naming(transformer, component)
    return AdapterNaming.join([own, *text_naming(text_encoders)])


def text_naming(text_encoders: Mapping[str, nn.Module]) -> list[AdapterNaming]:
    """Names of the layers of two CLIPs and T5, in this order.

    Args:
        text_encoders: component name -> text encoder, may be on the meta device.
    """
    namings = []
    for number, (name, encoder) in enumerate(text_encoders.items(), 1):
        if number <= len(COMFY_CLIPS):
            namings.append(clip_naming(name, layer_paths(encoder), f"lora_te{number}", COMFY_CLIPS[number - 1]))
        else:
            namings.append(t5_naming(name, layer_paths(encoder), number))
    return namings


def t5_naming(component: str, paths: list[str], number: int) -> AdapterNaming:
    """Names of the layers of T5, which ComfyUI finds by its own name for this encoder and by kohya's.

    Args:
        component: the encoder's name in the config.
        paths: of its layers.
        number: which of the model's text encoders it is, from 1.
    """
    layers: dict[LayerId, str] = {(component, path): path for path in paths}
    flattened = {layer: f"lora_te{number}_{flat(path)}" for layer, path in layers.items()}
    native = {layer: f"text_encoders.{_T5}.transformer.{path}" for layer, path in layers.items()}
    own = {layer: f"{component}.{path}" for layer, path in layers.items()}
    names = {
        **dict.fromkeys((ModelFormat.KOHYA_LORA, ModelFormat.LEGACY_LORA, ModelFormat.SAFETENSORS), flattened),
        ModelFormat.COMFY_LORA: native,
        **dict.fromkeys((ModelFormat.DIFFUSERS_LORA, ModelFormat.INTERNAL), own),
    }
    aliases = {
        f"{prefix}.{path}": layer for layer, path in layers.items() for prefix in (f"lora_te{number}", _T5, "t5")
    }
    return AdapterNaming.build(names, aliases, comfy=(*flattened.values(), *native.values()))
