"""How files call the layers of Flux.1: adapter files, and the single files that hold the transformer alone.

Native names are double_blocks, single_blocks, as in Flux.2. There the attention of a double block has one layer for
query, key and value, a single block has one for these three and the first layer of its MLP, and the last modulation
gives shift before scale; in diffusers they are three and four layers, and scale comes first.
"""

from collections.abc import Mapping

from modules.model.flux2_keys import DOUBLE_ATTENTION, DOUBLE_STACKS, FLUX_BLOCKS, SINGLE_NORMS
from modules.model.NativeLayout import NativeLayout
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import Share

from torch import nn

_EMBEDDERS = {"timestep_embedder": "time_in", "text_embedder": "vector_in", "guidance_embedder": "guidance_in"}
EMBEDDER_STEPS = {"linear_1": "in_layer", "linear_2": "out_layer"}
# the MLP is four times as wide as the attention
_SINGLE_STACK = {
    "attn.to_q": Share(0, 1, 7),
    "attn.to_k": Share(1, 2, 7),
    "attn.to_v": Share(2, 3, 7),
    "proj_mlp": Share(3, 7, 7),
}
# of blocks, in Chroma as well
FLUX_1_STACKS = {"transformer_blocks": DOUBLE_STACKS, "single_transformer_blocks": {"linear1": _SINGLE_STACK}}
FLUX_1_DOUBLE = {
    **DOUBLE_ATTENTION,
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_1_SINGLE = {**SINGLE_NORMS, "proj_out": "linear2"}

FLUX_1_LAYOUT = NativeLayout(
    model="Flux.1",
    outside={
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        **{
            f"time_text_embed.{embedder}.{step}": f"{native}.{native_step}"
            for embedder, native in _EMBEDDERS.items()
            for step, native_step in EMBEDDER_STEPS.items()
        },
        "proj_out": "final_layer.linear",
    },
    swapped={"norm_out.linear": "final_layer.adaLN_modulation.1"},
    blocks=FLUX_BLOCKS,
    inside={
        "transformer_blocks": {
            **FLUX_1_DOUBLE,
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
        },
        "single_transformer_blocks": {**FLUX_1_SINGLE, "norm.linear": "modulation.lin"},
    },
    fused=FLUX_1_STACKS,
)


def flux1_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Flux.1 model. Its text encoders carry no adapters.

    Args:
        transformer: a `FluxTransformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    return FLUX_1_LAYOUT.adapter_naming(transformer, component)
