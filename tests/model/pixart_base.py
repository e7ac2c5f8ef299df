"""Small random models of PixArt alpha and Sigma, and their layers in the original layout, written down by hand."""

from tests.model.flux1_models import _t5 as small_t5
from tests.model.flux1_models import t5_tokenizer
from tests.model.qwen_base import unsettle

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

TYPES = {"alpha": "PIXART_ALPHA", "sigma": "PIXART_SIGMA"}
# only of alpha is the transformer told sizes, by what its places are made for
VARIANTS = {
    "alpha": {"sample_size": 128},
    "sigma": {"sample_size": 8, "use_additional_conditions": False, "interpolation_scale": 2},
}
SCALES = {"alpha": 0.18215, "sigma": 0.13025}


def random_pixart(variant: str, width: int = 16, heads: int = 2) -> DiffusionPipeline:
    """A pipeline with random weights.

    Args:
        variant: of `VARIANTS`.
        width: of the text encoder.
        heads: of the transformer, with 24 channels each.
    """
    tokenizer = t5_tokenizer()
    encoder = small_t5(tokenizer, width)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=24, num_layers=2, cross_attention_dim=24 * heads,
        caption_channels=width, **VARIANTS[variant],
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=4, sample_size=64,
        scaling_factor=SCALES[variant],
    )  # fmt: skip
    unsettle(transformer, vae, encoder)
    kind = PixArtAlphaPipeline if variant == "alpha" else PixArtSigmaPipeline
    # its defaults are the published noise levels; what is said here, a sampler made of it keeps
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="linspace")
    pipeline = kind(tokenizer, encoder.eval(), vae.eval(), transformer.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


OUTSIDE = {
    "x_embedder.proj": ["pos_embed.proj"],
    "y_embedder.y_proj.fc1": ["caption_projection.linear_1"],
    "y_embedder.y_proj.fc2": ["caption_projection.linear_2"],
    "t_embedder.mlp.0": ["adaln_single.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["adaln_single.emb.timestep_embedder.linear_2"],
    "t_block.1": ["adaln_single.linear"],
    "final_layer.linear": ["proj_out"],
}
SIZES = {
    "csize_embedder.mlp.0": ["adaln_single.emb.resolution_embedder.linear_1"],
    "csize_embedder.mlp.2": ["adaln_single.emb.resolution_embedder.linear_2"],
    "ar_embedder.mlp.0": ["adaln_single.emb.aspect_ratio_embedder.linear_1"],
    "ar_embedder.mlp.2": ["adaln_single.emb.aspect_ratio_embedder.linear_2"],
}
BLOCK = {
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.proj": ["attn1.to_out.0"],
    "cross_attn.q_linear": ["attn2.to_q"],
    "cross_attn.kv_linear": ["attn2.to_k", "attn2.to_v"],
    "cross_attn.proj": ["attn2.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
}


def native_layers(transformer: nn.Module) -> dict[str, list[str]]:
    """Native layer -> the layers of diffusers that it stands for."""
    layers = OUTSIDE | (SIZES if transformer.use_additional_conditions else {})
    for i in range(len(transformer.transformer_blocks)):
        layers |= {f"blocks.{i}.{native}": [f"transformer_blocks.{i}.{path}" for path in paths]
                   for native, paths in BLOCK.items()}  # fmt: skip
    return layers


def native_tensors(transformer: nn.Module, start: str = "") -> dict[str, Tensor]:
    """The tensors of a transformer as the original code has them."""
    state, written = dict(transformer.state_dict()), {}
    for native, paths in native_layers(transformer).items():
        for ending in ("weight", "bias"):
            written[f"{native}.{ending}"] = torch.cat([state.pop(f"{path}.{ending}") for path in paths])
    written["final_layer.scale_shift_table"] = state.pop("scale_shift_table")
    for i in range(len(transformer.transformer_blocks)):
        written[f"blocks.{i}.scale_shift_table"] = state.pop(f"transformer_blocks.{i}.scale_shift_table")
    assert not state, list(state)
    return {start + name: tensor.clone() for name, tensor in written.items()}
