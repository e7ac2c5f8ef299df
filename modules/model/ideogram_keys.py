"""How files call the layers of Ideogram 4: adapter files, and the single files that hold a transformer alone.

"Native" names are those of the original code, which ComfyUI and single files have. There the attention of a block has
one layer for query, key and value; diffusers has three. ComfyUI knows the native names alone, dotted and flattened, and
none for a share of that layer.
"""

import re
from collections.abc import Mapping

from modules.model.dotted_naming import dotted_naming
from modules.model.native_file import NativeTensor
from modules.model.NativeLayout import native_layers
from modules.model.unet_keys import layer_paths
from modules.util.AdapterNaming import AdapterNaming
from modules.util.CheckpointTensor import THIRDS

from torch import nn

_KNOWN = re.compile(
    r"(layers\.\d+|input_proj|llm_cond_norm|llm_cond_proj|t_embedding|adaln_proj|embed_image_indicator|final_layer)\b"
)
_ATTENTION = re.compile(r"(layers\.\d+\.attention)\.(to_[qkv]|to_out\.0)(.*)")


def native_tensor(name: str) -> NativeTensor:
    """The place of a tensor, or of a layer, that diffusers calls `name`.

    Raises:
        ValueError: it is none of an Ideogram 4 transformer's.
    """
    if not _KNOWN.match(name):
        raise ValueError(f"{name} has no native name; expected a layer of an Ideogram 4 transformer")
    if not (found := _ATTENTION.fullmatch(name)):
        return NativeTensor(name)
    attention, layer, ending = found.groups()
    if layer == "to_out.0":
        return NativeTensor(f"{attention}.o{ending}")
    return NativeTensor(f"{attention}.qkv{ending}", THIRDS["qkv".index(layer[-1])])


def ideogram_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of an Ideogram 4 model. Its text encoder carries no adapters.

    Args:
        transformer: an `Ideogram4Transformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    paths = layer_paths(transformer)
    apart, groups = native_layers(transformer, paths, component, native_tensor)
    # as the original repository calls the transformer that adapters are for
    other = ("conditional_transformer",)
    return dotted_naming(component, paths, apart, groups, native=True, comfy_paths=False, prefixes=other)
