"""How files call the layers of Sana: adapter files, and the single files that hold the transformer alone.

Adapter files have diffusers' names, also in OneTrainer; ComfyUI does not know the model. Native names are those of the
original code, whose files hold the transformer. There attention has one layer for query, key and value, or for key and
value.
"""

from collections.abc import Mapping
from dataclasses import replace

from modules.model.NativeLayout import NativeLayout
from modules.model.unet_keys import flat, kernel_sizes, layer_paths
from modules.util.AdapterNaming import AdapterNaming, LayerId
from modules.util.CheckpointTensor import HALVES, THIRDS
from modules.util.enum.ModelFormat import ModelFormat

from torch import nn

SANA_LAYOUT = NativeLayout(
    model="Sana",
    outside={
        "patch_embed.proj": "x_embedder.proj",
        "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_embed.linear": "t_block.1",
        "caption_projection.linear_1": "y_embedder.y_proj.fc1",
        "caption_projection.linear_2": "y_embedder.y_proj.fc2",
        "proj_out": "final_layer.linear",
    },
    swapped={},
    blocks={"transformer_blocks": "blocks"},
    inside={
        "transformer_blocks": {
            # of its own it has a table of scales and shifts
            "": "",
            "attn1.to_out.0": "attn.proj",
            "attn1.norm_q": "attn.q_norm",
            "attn1.norm_k": "attn.k_norm",
            "attn2.to_q": "cross_attn.q_linear",
            "attn2.to_out.0": "cross_attn.proj",
            "attn2.norm_q": "cross_attn.q_norm",
            "attn2.norm_k": "cross_attn.k_norm",
            "ff.conv_inverted": "mlp.inverted_conv.conv",
            "ff.conv_depth": "mlp.depth_conv.conv",
            "ff.conv_point": "mlp.point_conv.conv",
        }
    },
    fused={
        "transformer_blocks": {
            "attn.qkv": dict(zip(("attn1.to_q", "attn1.to_k", "attn1.to_v"), THIRDS, strict=True)),
            "cross_attn.kv_linear": dict(zip(("attn2.to_k", "attn2.to_v"), HALVES, strict=True)),
        }
    },
    tensors={
        "scale_shift_table": "final_layer.scale_shift_table",
        # the norms' weights are called so here
        "caption_norm.weight": "attention_y_norm.weight",
    },
)


def sana_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Sana model. Its text encoder carries no adapters.

    Args:
        transformer: a `SanaTransformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.
    """
    layers: dict[LayerId, str] = {(component, path): path for path in layer_paths(transformer)}

    def named(start: str) -> dict[LayerId, str]:
        return {layer: start + (flat(path) if start.endswith("_") else path) for layer, path in layers.items()}

    names = {
        **dict.fromkeys((ModelFormat.KOHYA_LORA, ModelFormat.SAFETENSORS), named("lora_unet_")),
        ModelFormat.ORIGINAL_LORA: named(""),
        ModelFormat.DIFFUSERS_LORA: named("transformer."),
        ModelFormat.LEGACY_LORA: named("lora_transformer_"),
        ModelFormat.INTERNAL: named(f"{component}."),
    }
    starts = ("diffusion_model.", "base_model.model.", "lora_transformer.", "lycoris_")
    aliases = {name: layer for start in starts for layer, name in named(start).items()}
    naming = AdapterNaming.build(names, aliases)
    return replace(naming, kernels=kernel_sizes(component, transformer), in_comfy=False)
