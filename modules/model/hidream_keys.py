"""How files call the layers of HiDream: adapter files, and the single files that people download.

ComfyUI and the original code have diffusers' names of the transformer's layers, the experts' included, so that nothing
is renamed, joined or exchanged. It finds them with four prefixes; bare names it does not know.
"""

from collections.abc import Mapping
from dataclasses import replace

from modules.model.dotted_naming import dotted_naming
from modules.model.sd3_keys import text_naming
from modules.model.unet_keys import flat, layer_paths
from modules.util.AdapterNaming import AdapterNaming

from torch import nn


def hidream_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module], component: str = "transformer"
) -> AdapterNaming:
    """The key map of a HiDream model.

    Args:
        transformer: a `HiDreamImageTransformer2DModel`, may be on the meta device.
        text_encoders: component name -> text encoder: the small CLIP, the large one, T5. Llama carries no adapters.
        component: the transformer's name in the config.
    """
    paths = layer_paths(transformer)
    naming = dotted_naming(component, paths, {(component, path): path for path in paths}, {}, False, native=True)
    naming = replace(naming, comfy=naming.comfy | {f"lycoris_{flat(path)}" for path in paths})
    return AdapterNaming.join([naming, *text_naming(text_encoders)])
