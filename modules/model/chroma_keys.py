"""How files call the layers of Chroma: adapter files, and the single files that hold the transformer alone.

Native names are those of Flux.1 but for what Chroma has not: CLIP's embedder, that of the time, and modulations in each
block. One small network gives the modulations of all blocks. diffusers has shift and scale in its order, so that no
halves are exchanged.
"""

from collections.abc import Mapping

from modules.model.flux1_keys import EMBEDDER_STEPS, FLUX_1_DOUBLE, FLUX_1_SINGLE, FLUX_1_STACKS
from modules.model.flux2_keys import FLUX_BLOCKS
from modules.model.NativeLayout import NativeLayout
from modules.util.AdapterNaming import AdapterNaming

from torch import nn

_MODULATION = "distilled_guidance_layer"

CHROMA_LAYOUT = NativeLayout(
    model="Chroma",
    outside={
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        **{f"{_MODULATION}.{name}": f"{_MODULATION}.{name}" for name in ("in_proj", "out_proj")},
        "proj_out": "final_layer.linear",
    },
    swapped={},
    blocks={**FLUX_BLOCKS, **{f"{_MODULATION}.{name}": f"{_MODULATION}.{name}" for name in ("layers", "norms")}},
    inside={
        "transformer_blocks": FLUX_1_DOUBLE,
        "single_transformer_blocks": FLUX_1_SINGLE,
        f"{_MODULATION}.layers": EMBEDDER_STEPS,
        f"{_MODULATION}.norms": {"": ""},
    },
    fused=FLUX_1_STACKS,
    # its map of diffusers' names is that of Flux.1
    unknown_to_comfy=(f"{_MODULATION}.",),
)


def chroma_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Chroma model. Its text encoder carries no adapters.

    Args:
        transformer: a `ChromaTransformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    return CHROMA_LAYOUT.adapter_naming(transformer, component)
