"""Small random models of Stable Diffusion 3 and 3.5, and their layers in the original layout, written down by hand."""

from tests.model.flux1_models import t5_tokenizer

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

# what 3.5 medium has beside 3: norms of queries and keys, and a second attention in its first blocks
VARIANTS = {"3": {}, "3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}}


def sd3_pipeline(variant: str, clip: CLIPTokenizer, width: int = 16, heads: int = 2) -> StableDiffusion3Pipeline:
    """A pipeline with random weights.

    Args:
        variant: of `VARIANTS`.
        clip: the tokenizer of both CLIPs.
        width: of the small CLIP; the large one has as much again, T5 thrice as much.
        heads: of the transformer, with 16 channels each.
    """
    t5 = t5_tokenizer()

    def encoder(own: int, act: str) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=len(clip), hidden_size=own, intermediate_size=2 * own, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=16, projection_dim=own, hidden_act=act,
            bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
        ))  # fmt: skip

    first, second = encoder(width, "quick_gelu"), encoder(2 * width, "gelu")
    # wider than both CLIPs, as in the published models
    text_encoder_3 = T5EncoderModel(T5Config(
        vocab_size=len(t5), d_model=4 * width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    ))  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=heads,
        joint_attention_dim=4 * width, caption_projection_dim=16 * heads, pooled_projection_dim=3 * width,
        pos_embed_max_size=8, **VARIANTS[variant],
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=4, sample_size=64, scaling_factor=1.5305,
        shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    with torch.no_grad():
        for module in (transformer, vae, first, second, text_encoder_3):
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        # the small CLIP's summary is not projected in these models
        first.text_projection.weight.copy_(torch.eye(width))
    pipeline = StableDiffusion3Pipeline(
        transformer.eval(), FlowMatchEulerDiscreteScheduler(shift=3.0), vae.eval(), first.eval(), clip, second.eval(),
        clip, text_encoder_3.eval(), t5,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


OUTSIDE = {
    "x_embedder.proj": ["pos_embed.proj"],
    "context_embedder": ["context_embedder"],
    "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
    "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
    "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
# of every block
IMAGE = {
    "x_block.adaLN_modulation.1": ["norm1.linear"],
    "x_block.attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "x_block.attn.proj": ["attn.to_out.0"],
    "x_block.mlp.fc1": ["ff.net.0.proj"],
    "x_block.mlp.fc2": ["ff.net.2"],
    "context_block.adaLN_modulation.1": ["norm1_context.linear"],
    "context_block.attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
}
# of all blocks but the last, whose text goes nowhere
TEXT = {
    "context_block.attn.proj": ["attn.to_add_out"],
    "context_block.mlp.fc1": ["ff_context.net.0.proj"],
    "context_block.mlp.fc2": ["ff_context.net.2"],
}
DUAL = {
    "x_block.attn2.qkv": ["attn2.to_q", "attn2.to_k", "attn2.to_v"],
    "x_block.attn2.proj": ["attn2.to_out.0"],
}
NORMS = {
    "x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k",
    "context_block.attn.ln_q": "attn.norm_added_q", "context_block.attn.ln_k": "attn.norm_added_k",
    "x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k",
}  # fmt: skip


def swapped(config) -> list[str]:
    """The native layers that give shift before scale."""
    return [
        "final_layer.adaLN_modulation.1",
        f"joint_blocks.{config['num_layers'] - 1}.context_block.adaLN_modulation.1",
    ]


def native_layers(config) -> dict[str, list[str]]:
    """Native layer -> the layers of diffusers that it stands for."""
    layers, last = dict(OUTSIDE), config["num_layers"] - 1
    for i in range(config["num_layers"]):
        inner = IMAGE | (TEXT if i < last else {}) | (DUAL if i in config["dual_attention_layers"] else {})
        layers |= {f"joint_blocks.{i}.{native}": [f"transformer_blocks.{i}.{path}" for path in paths]
                   for native, paths in inner.items()}  # fmt: skip
    return layers


def native_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """All tensors of a transformer in the original layout."""
    state, written = transformer.state_dict(), {}
    written["pos_embed"] = state.pop("pos_embed.pos_embed")
    for native, paths in native_layers(transformer.config).items():
        for ending in ("weight", "bias"):
            tensor = torch.cat([state.pop(f"{path}.{ending}") for path in paths])
            # shift before scale
            turned = native in swapped(transformer.config)
            written[f"{native}.{ending}"] = torch.cat(tensor.chunk(2)[::-1]) if turned else tensor
    for i in range(transformer.config.num_layers):
        for native, path in NORMS.items():
            if (name := f"transformer_blocks.{i}.{path}.weight") in state:
                written[f"joint_blocks.{i}.{native}.weight"] = state.pop(name)
    assert not state, list(state)
    return {name: tensor.clone() for name, tensor in written.items()}
