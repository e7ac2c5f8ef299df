"""How files call the layers of PixArt alpha and Sigma: adapter files, and the single files that hold the transformer.

Native names are those of the original code. There a block's attention has one layer for query, key and value, and its
attention to the text one for key and value; in diffusers they are three and two.
"""

from collections.abc import Mapping

from modules.model.NativeLayout import NativeLayout
from modules.model.sd3_keys import t5_naming
from modules.model.unet_keys import layer_paths
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import HALVES, THIRDS

from torch import nn

_EMBEDDERS = {
    "adaln_single.emb.timestep_embedder": "t_embedder.mlp",
    # of alpha at 1024 pixels
    "adaln_single.emb.resolution_embedder": "csize_embedder.mlp",
    "adaln_single.emb.aspect_ratio_embedder": "ar_embedder.mlp",
}

PIXART_LAYOUT = NativeLayout(
    model="PixArt",
    outside={
        "pos_embed.proj": "x_embedder.proj",
        "caption_projection.linear_1": "y_embedder.y_proj.fc1",
        "caption_projection.linear_2": "y_embedder.y_proj.fc2",
        **{
            f"{path}.linear_{number}": f"{native}.{step}"
            for path, native in _EMBEDDERS.items()
            for number, step in ((1, 0), (2, 2))
        },
        "adaln_single.linear": "t_block.1",
        "proj_out": "final_layer.linear",
    },
    swapped={},
    blocks={"transformer_blocks": "blocks"},
    inside={
        "transformer_blocks": {
            # of its own it has a table of scales and shifts
            "": "",
            "attn1.to_out.0": "attn.proj",
            "attn2.to_q": "cross_attn.q_linear",
            "attn2.to_out.0": "cross_attn.proj",
            "ff.net.0.proj": "mlp.fc1",
            "ff.net.2": "mlp.fc2",
        }
    },
    fused={
        "transformer_blocks": {
            "attn.qkv": dict(zip(("attn1.to_q", "attn1.to_k", "attn1.to_v"), THIRDS, strict=True)),
            "cross_attn.kv_linear": dict(zip(("attn2.to_k", "attn2.to_v"), HALVES, strict=True)),
        }
    },
    tensors={"scale_shift_table": "final_layer.scale_shift_table"},
    comfy_prefixes=("transformer.", "base_model.model.", "unet.base_model.model."),
)


def pixart_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module], component: str = "transformer"
) -> AdapterNaming:
    """The key map of a PixArt model.

    Args:
        transformer: a `PixArtTransformer2DModel`, may be on the meta device.
        text_encoders: component name -> T5.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    namings = [PIXART_LAYOUT.adapter_naming(transformer, component)]
    namings += [t5_naming(name, layer_paths(encoder), 1) for name, encoder in text_encoders.items()]
    return AdapterNaming.join(namings)
