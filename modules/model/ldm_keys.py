"""Tensor names of the original Stable Diffusion code (LDM), from the names that diffusers and transformers use.

Each function takes one name of a component's state dict and returns the name in a single-file checkpoint, with its
prefix.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modules.model.unet_keys import clip_file_path, native_unet_path
from modules.util.CheckpointTensor import THIRDS, Share

from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
# text encoder -> where it stands: in SD 1.x and 2.x, in SDXL
TEXT_PREFIXES = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
# behind those: encoders as transformers names them, and as OpenCLIP does
CLIP_PREFIX, OPEN_CLIP_PREFIX = "transformer.", "model."

_VAE_STEPS = (
    (re.compile(r"^(encoder|decoder)\.conv_norm_out\."), r"\1.norm_out."),
    (re.compile(r"\.mid_block\.resnets\.0\."), ".mid.block_1."),
    (re.compile(r"\.mid_block\.resnets\.1\."), ".mid.block_2."),
    (re.compile(r"\.mid_block\.attentions\.0\."), ".mid.attn_1."),
    (re.compile(r"\.attn_1\.group_norm\."), ".attn_1.norm."),
    (re.compile(r"\.attn_1\.to_([qkv])\."), r".attn_1.\1."),
    (re.compile(r"\.attn_1\.to_out\.0\."), ".attn_1.proj_out."),
    (re.compile(r"\.down_blocks\.(\d+)\.resnets\."), r".down.\1.block."),
    (re.compile(r"\.down_blocks\.(\d+)\.downsamplers\.0\."), r".down.\1.downsample."),
    (re.compile(r"\.up\.(\d+)\.resnets\."), r".up.\1.block."),
    (re.compile(r"\.up\.(\d+)\.upsamplers\.0\."), r".up.\1.upsample."),
    (re.compile(r"\.conv_shortcut\."), ".nin_shortcut."),
)

_OPEN_CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_CLIP_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "text_projection.weight": "text_projection",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
# row block of each projection in OpenCLIP's joint `in_proj`
_IN_PROJ = dict(zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), THIRDS, strict=True))


class Place(NamedTuple):
    """Where a checkpoint holds a tensor of a component.

    Attributes:
        name: in the checkpoint.
        share: which rows of that tensor it is; None: all of it.
        transposed: rows and columns are swapped there.
    """

    name: str
    share: Share | None = None
    transposed: bool = False

    def shape(self, shape: Sequence[int]) -> list[int]:
        """The shape of the component's tensor, by that of the checkpoint's."""
        rows, *others = shape if shape else [1]
        # a number of rows that can't be split stays as it is, and fits nothing
        if self.share is not None and rows % self.share.parts == 0:
            rows = rows // self.share.parts * (self.share.stop - self.share.start)
        return [rows, *others][::-1] if self.transposed else [rows, *others]

    def piece(self, tensor: Tensor) -> Tensor:
        """The component's tensor out of the checkpoint's, whose memory it shares."""
        rows = tensor if self.share is None else self.share.of(tensor)
        return rows.T if self.transposed else rows


def unet_name(name: str, blocks: Mapping[str, str], prefix: str = UNET_PREFIX) -> str:
    """Checkpoint name of a UNet tensor; `blocks` is what `native_blocks` makes of the UNet's config.

    Raises:
        ValueError: the UNet has layers that LDM checkpoints don't have.
    """
    layer, ending = name.rsplit(".", 1)
    return f"{prefix}{native_unet_path(layer, blocks)}.{ending}"


def vae_name(name: str, config: Mapping[str, object], prefix: str = VAE_PREFIX) -> str:
    """Checkpoint name of an autoencoder tensor; `config` is that of `AutoencoderKL`."""
    last = len(config["block_out_channels"]) - 1
    # LDM counts the decoder's levels from the outside, diffusers in the order of computation
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{last - int(found[1])}.", name)
    for pattern, replacement in _VAE_STEPS:
        name = pattern.sub(replacement, name)
    return prefix + name


def clip_name(name: str, prefix: str) -> str:
    """Checkpoint name of a tensor of SD 1's, or SDXL's first text encoder.

    Transformers 5 dropped `text_model.`; files have it.
    """
    return prefix + clip_file_path(name)


def open_clip_place(name: str, prefix: str) -> Place:
    """Place of a tensor of SD 2's, or SDXL's second text encoder."""
    name = name.removeprefix("text_model.")
    layer = _OPEN_CLIP_LAYER.fullmatch(name)
    if not layer:
        return Place(prefix + _OPEN_CLIP_ENDS[name], transposed=name == "text_projection.weight")
    start = f"{prefix}transformer.resblocks.{layer[1]}"
    if layer[2] in _IN_PROJ:
        return Place(f"{start}.attn.in_proj_{layer[3]}", _IN_PROJ[layer[2]])
    return Place(f"{start}.{_OPEN_CLIP_NAMES[layer[2]]}.{layer[3]}")
