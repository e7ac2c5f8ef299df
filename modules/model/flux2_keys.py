"""How files call the layers of Flux.2: adapter files, and the single files that hold the transformer alone.

Native names are double_blocks, single_blocks. There the attention of a double block has one layer for query, key and
value, and the last modulation gives shift before scale; in diffusers they are three layers, and scale comes first.
"""

from collections.abc import Mapping

from modules.model.NativeLayout import NativeLayout
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import THIRDS

from torch import nn

FLUX_BLOCKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
# of a double block, in Flux.1 as well
DOUBLE_ATTENTION = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
DOUBLE_STACKS = {
    "img_attn.qkv": dict(zip(("attn.to_q", "attn.to_k", "attn.to_v"), THIRDS, strict=True)),
    "txt_attn.qkv": dict(zip(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), THIRDS, strict=True)),
}
SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}

FLUX_2_LAYOUT = NativeLayout(
    model="Flux.2",
    outside={
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
    },
    swapped={"norm_out.linear": "final_layer.adaLN_modulation.1"},
    blocks=FLUX_BLOCKS,
    inside={
        "transformer_blocks": {
            **DOUBLE_ATTENTION,
            "ff.linear_in": "img_mlp.0",
            "ff.linear_out": "img_mlp.2",
            "ff_context.linear_in": "txt_mlp.0",
            "ff_context.linear_out": "txt_mlp.2",
        },
        "single_transformer_blocks": {**SINGLE_NORMS, "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"},
    },
    fused={"transformer_blocks": DOUBLE_STACKS},
    # Flux.1 has nothing under these names, and ComfyUI does not know them
    unknown_to_comfy=("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation."),
)


def flux2_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Flux.2 model. Its text encoder carries no adapters.

    Args:
        transformer: a `Flux2Transformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    return FLUX_2_LAYOUT.adapter_naming(transformer, component)
