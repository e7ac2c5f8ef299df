"""How files call the layers of Z-Image: adapter files, and the single files that hold the transformer alone.

"Native" names are ComfyUI's, which most single files have. There the attention of a block has one layer for query, key
and value; the original code and diffusers have three. In adapter files ComfyUI knows these three as well.
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

# tensors that such files may hold although no layer reads them
UNUSED = ("norm_final.weight",)
_BLOCK = r"(?:layers|noise_refiner|context_refiner)\.\d+\."
_KNOWN = re.compile(
    rf"({_BLOCK}|all_x_embedder\.2-1|all_final_layer\.2-1\.|t_embedder\.mlp\.|cap_embedder\.)|(x|cap)_pad_token$"
)
_THIRD = re.compile(rf"({_BLOCK}attention)\.to_([qkv])(.*)")
_RENAMED = (
    (re.compile(r"^all_(x_embedder|final_layer)\.2-1"), r"\1"),
    (re.compile(r"\.attention\.norm_([qk])"), r".attention.\1_norm"),
    (re.compile(r"\.attention\.to_out\.0"), ".attention.out"),
)


def native_tensor(name: str) -> NativeTensor:
    """The place of a tensor, or of a layer, that diffusers calls `name`.

    Raises:
        ValueError: it is none of a Z-Image transformer's.
    """
    if not _KNOWN.match(name):
        raise ValueError(f"{name} has no native name; expected a layer of a Z-Image transformer")
    if third := _THIRD.fullmatch(name):
        attention, letter, ending = third.groups()
        return NativeTensor(f"{attention}.qkv{ending}", THIRDS["qkv".index(letter)])
    for pattern, native in _RENAMED:
        name = pattern.sub(native, name)
    return NativeTensor(name)


def zimage_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Z-Image model. Its text encoder carries no adapters.

    Args:
        transformer: a `ZImageTransformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    paths = layer_paths(transformer)
    apart, groups = native_layers(transformer, paths, component, native_tensor)
    return dotted_naming(component, paths, apart, groups)
