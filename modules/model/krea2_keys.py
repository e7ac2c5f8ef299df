"""How files call the layers of Krea 2: adapter files, and the single files that hold the transformer alone.

"Native" names are those of the original code, which ComfyUI and most single files have. Nothing is joined in them. In
adapter files ComfyUI knows diffusers' names of all layers as well.
"""

import re
from collections.abc import Mapping

from modules.model.dotted_naming import dotted_naming
from modules.model.native_file import NativeTensor
from modules.model.unet_keys import layer_paths
from modules.util.AdapterNaming import AdapterNaming

from torch import nn

_OUTSIDE = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.norm": "txtmlp.0",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion.projector": "txtfusion.projector",
    "final_layer.linear": "last.linear",
    "final_layer.norm": "last.norm",
}
_BLOCKS = {
    "transformer_blocks": "blocks",
    "text_fusion.layerwise_blocks": "txtfusion.layerwise_blocks",
    "text_fusion.refiner_blocks": "txtfusion.refiner_blocks",
}
_INSIDE = {
    "norm1": "prenorm",
    "norm2": "postnorm",
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "attn.norm_q": "attn.qknorm.qnorm",
    "attn.norm_k": "attn.qknorm.knorm",
    "ff.gate": "mlp.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
}
_BLOCK = re.compile(r"(.+_blocks)\.(\d+)\.(.+)")
# tables of scales and shifts; files have one of a block as a single row
_TABLE, _LAST_TABLE = "scale_shift_table", "final_layer.scale_shift_table"


def native_layer(path: str) -> str:
    """The native path of a layer or norm that diffusers calls `path`.

    Raises:
        ValueError: it is none of a Krea 2 transformer's.
    """
    if native := _OUTSIDE.get(path):
        return native
    if found := _BLOCK.fullmatch(path):
        blocks, number, inner = found.groups()
        if blocks in _BLOCKS and inner in _INSIDE:
            return f"{_BLOCKS[blocks]}.{number}.{_INSIDE[inner]}"
    raise ValueError(f"{path} has no native name; expected a layer of a Krea 2 transformer")


def native_tensor(name: str) -> NativeTensor:
    """The place of a tensor that diffusers calls `name`. Raises ValueError as `native_layer` does."""
    if name == _LAST_TABLE:
        return NativeTensor("last.modulation.lin")
    path, ending = name.rsplit(".", 1)
    if ending == _TABLE and (found := re.fullmatch(r"transformer_blocks\.(\d+)", path)):
        return NativeTensor(f"blocks.{found[1]}.mod.lin", flat=True)
    native = native_layer(path)
    # the original code's norms call their weight so
    is_norm = native.endswith("norm") or native == _OUTSIDE["txt_in.norm"]
    return NativeTensor(f"{native}.{'scale' if is_norm else ending}")


def krea2_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Krea 2 model. Its text encoder carries no adapters.

    Args:
        transformer: a `Krea2Transformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    paths = layer_paths(transformer)
    apart = {(component, path): native_layer(path) for path in paths}
    return dotted_naming(component, paths, apart, {}, native=True)
