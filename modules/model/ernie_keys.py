"""How adapter files call the layers of Ernie-Image: everywhere as diffusers does.

ComfyUI knows them after `diffusion_model.` and `transformer.`, and flattened after `lora_unet_`; other than of most
families it knows no bare names, and none after `lycoris_`.
"""

from collections.abc import Mapping

from modules.model.dotted_naming import dotted_naming
from modules.model.unet_keys import layer_paths
from modules.util.AdapterNaming import AdapterNaming

from torch import nn


def ernie_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of an Ernie-Image model. Its text encoder carries no adapters.

    Args:
        transformer: an `ErnieImageTransformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.
    """
    paths = layer_paths(transformer)
    return dotted_naming(component, paths, {(component, path): path for path in paths}, {}, comfy_bare=False)
