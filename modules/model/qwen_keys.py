"""How files call the layers of Qwen-Image: adapter files, and the single files that hold its VAE.

The transformer has the names of diffusers everywhere: in the published files, in ComfyUI and in OneTrainer. Files of
the VAE have those of the video model Wan, whose VAE it is in structure.
"""

import re
from collections.abc import Mapping

from modules.model.dotted_naming import dotted_naming
from modules.model.unet_keys import layer_paths
from modules.util.AdapterNaming import AdapterNaming

from torch import nn

_OUTSIDE = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "encoder.conv_in": "encoder.conv1",
    "decoder.conv_in": "decoder.conv1",
}
_STEPS = (
    (re.compile(r"^(encoder|decoder)\.norm_out\."), r"\1.head.0."),
    (re.compile(r"^(encoder|decoder)\.conv_out\."), r"\1.head.2."),
    (re.compile(r"\.mid_block\.resnets\.0\."), ".middle.0."),
    (re.compile(r"\.mid_block\.attentions\.0\."), ".middle.1."),
    (re.compile(r"\.mid_block\.resnets\.1\."), ".middle.2."),
    (re.compile(r"\.down_blocks\."), ".downsamples."),
    # in a block of either kind
    (re.compile(r"\.norm1\."), ".residual.0."),
    (re.compile(r"\.conv1\.(weight|bias)$"), r".residual.2.\1"),
    (re.compile(r"\.norm2\."), ".residual.3."),
    (re.compile(r"\.conv2\."), ".residual.6."),
    (re.compile(r"\.conv_shortcut\."), ".shortcut."),
)
_UP = re.compile(r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")


def qwen_vae_name(name: str, config: Mapping[str, object]) -> str:
    """Name in Wan's files of a tensor of an `AutoencoderKLQwenImage`; `config` is the autoencoder's."""
    owner, ending = name.rsplit(".", 1)
    if owner in _OUTSIDE:
        return f"{_OUTSIDE[owner]}.{ending}"
    # files count the decoder's blocks through: those of a level, then what enlarges the image
    resnets = int(config["num_res_blocks"]) + 1

    def through(found: re.Match[str]) -> str:
        level, kind, number = found.groups()
        place = int(level) * (resnets + 1) + (resnets if kind == "upsamplers" else int(number))
        return f".upsamples.{place}."

    name = _UP.sub(through, name)
    for pattern, native in _STEPS:
        name = pattern.sub(native, name)
    return name


def qwen_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Qwen-Image model. Its text encoder carries no adapters.

    Args:
        transformer: a `QwenImageTransformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.
    """
    paths = layer_paths(transformer)
    return dotted_naming(component, paths, {(component, path): path for path in paths}, {})
