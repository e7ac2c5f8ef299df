"""How files call the layers of Anima: adapter files, and the single files that hold the transformer.

"Native" names are those of the original code, Cosmos-Predict2, which ComfyUI and most single files have. Nothing is
joined in them. In files of the whole transformer they stand behind `net.`, beside the text conditioner, whose names are
those of diffusers behind `net.llm_adapter.`. ComfyUI knows native names alone.
"""

from collections.abc import Mapping

from modules.model.native_file import NativeTensor
from modules.model.NativeLayout import NativeLayout
from modules.util.AdapterNaming import AdapterNaming

from torch import nn

CONDITIONER = "llm_adapter."
# what files of the transformer may hold beside it: tables that are computed, and counts of its training
BESIDE_TRANSFORMER = (CONDITIONER, "pos_embedder.", "accum_")
_ATTENTION = {
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
}
LAYOUT = NativeLayout(
    model="Anima",
    outside={
        "patch_embed.proj": "x_embedder.proj.1",
        "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
        "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
        "time_embed.norm": "t_embedding_norm",
        "norm_out.linear_1": "final_layer.adaln_modulation.1",
        "norm_out.linear_2": "final_layer.adaln_modulation.2",
        "proj_out": "final_layer.linear",
    },
    swapped={},
    blocks={"transformer_blocks": "blocks"},
    inside={
        "transformer_blocks": {
            **{
                f"norm{norm}.linear_{number}": f"adaln_modulation_{kind}.{number}"
                for norm, kind in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp"))
                for number in (1, 2)
            },
            **{
                f"attn{number}.{inner}": f"{kind}_attn.{native}"
                for number, kind in ((1, "self"), (2, "cross"))
                for inner, native in _ATTENTION.items()
            },
            "ff.net.0.proj": "mlp.layer1",
            "ff.net.2": "mlp.layer2",
        }
    },
    fused={},
    unknown_to_comfy=("",),
    file_prefix="net.",
)


def native_tensor(name: str) -> NativeTensor:
    """The place of a tensor that diffusers calls `name`. ValueError if it is none of such a transformer's."""
    path, ending = name.rsplit(".", 1)
    return NativeTensor(f"{LAYOUT.layer(path)[0]}.{ending}")


def anima_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of an Anima model. Its text encoder and its text conditioner carry no adapters.

    Args:
        transformer: a `CosmosTransformer3DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    return LAYOUT.adapter_naming(transformer, component)
