"""Tensor names of the original Stable Diffusion code (LDM), from the names that diffusers and transformers use.

Each function takes one name of a component's state dict and returns the name in a single-file checkpoint, with its
prefix.
"""

import re
from collections.abc import Mapping

from modules.model.unet_keys import native_unet_path

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."

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
_OPEN_CLIP_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
# row block of each projection in OpenCLIP's joint `in_proj`
_IN_PROJ = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def unet_name(name: str, blocks: Mapping[str, str]) -> str:
    """Checkpoint name of a UNet tensor; `blocks` is what `native_blocks` makes of the UNet's config.

    Raises:
        ValueError: the UNet has parts that LDM checkpoints don't have.
    """
    layer, ending = name.rsplit(".", 1)
    return f"{UNET_PREFIX}{native_unet_path(layer, blocks)}.{ending}"


def vae_name(name: str, config: Mapping[str, object]) -> str:
    """Checkpoint name of an autoencoder tensor; `config` is that of `AutoencoderKL`."""
    last = len(config["block_out_channels"]) - 1
    # LDM counts the decoder's levels from the outside, diffusers in the order of computation
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{last - int(found[1])}.", name)
    for pattern, replacement in _VAE_STEPS:
        name = pattern.sub(replacement, name)
    return VAE_PREFIX + name


def clip_name(name: str) -> str:
    """Checkpoint name of a tensor of SD 1's text encoder. Transformers 5 dropped `text_model.`; files have it."""
    return f"{CLIP_PREFIX}text_model.{name.removeprefix('text_model.')}"


def open_clip_name(name: str) -> tuple[str, int | None]:
    """Checkpoint name of a tensor of SD 2's text encoder, and which third of that tensor it is (None: all of it)."""
    name = name.removeprefix("text_model.")
    layer = _OPEN_CLIP_LAYER.fullmatch(name)
    if not layer:
        return OPEN_CLIP_PREFIX + _OPEN_CLIP_ENDS[name], None
    start = f"{OPEN_CLIP_PREFIX}transformer.resblocks.{layer[1]}"
    if layer[2] in _IN_PROJ:
        return f"{start}.attn.in_proj_{layer[3]}", _IN_PROJ[layer[2]]
    return f"{start}.{_OPEN_CLIP_PARTS[layer[2]]}.{layer[3]}", None
