"""Small random Flux.1 models, and their layers in the original layout, which is written down by hand."""

import torch
from torch import Tensor

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

WORDS = "a red cat blue dog shape number 0 1 2 3 4 5 6"


def _t5_tokenizer() -> T5TokenizerFast:
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*marks, *((f"▁{word}", -3.0) for word in WORDS.split())], extra_ids=0)


def flux1_pipeline(variant: str, clip: CLIPTokenizer, width: int = 16, heads: int = 2) -> FluxPipeline:
    """A pipeline with random weights.

    Args:
        variant: "dev" or "schnell".
        clip: CLIP's tokenizer.
        width: of the text encoders.
        heads: of the transformer, with 16 channels each.
    """
    t5 = _t5_tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=width, bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
    ))  # fmt: skip
    text_encoder_2 = T5EncoderModel(T5Config(
        vocab_size=len(t5), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", initializer_factor=2.0,
    ))  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=heads,
        joint_attention_dim=width, pooled_projection_dim=width, axes_dims_rope=(4, 6, 6),
        guidance_embeds=variant == "dev",
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=4, sample_size=64, scaling_factor=0.3611,
        shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    with torch.no_grad():
        for module in (transformer, vae, text_encoder, text_encoder_2):
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    # as in the published models
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True} if variant == "dev" else {}
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**dynamic), vae.eval(), text_encoder.eval(), clip, text_encoder_2.eval(), t5,
        transformer.eval(),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


OUTSIDE = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
GUIDANCE = {
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
}
DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mod.lin": ["norm1_context.linear"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
NORMS = {
    "double_blocks": {
        "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    },
    "single_blocks": {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
}  # fmt: skip
LAST = "final_layer.adaLN_modulation.1"


def native_layers(config) -> dict[str, list[str]]:
    """Native layer -> the layers of diffusers that it stands for."""
    layers = dict(OUTSIDE) | (GUIDANCE if config["guidance_embeds"] else {})
    for native, ours, count, inner in (
        ("double_blocks", "transformer_blocks", config["num_layers"], DOUBLE),
        ("single_blocks", "single_transformer_blocks", config["num_single_layers"], SINGLE),
    ):
        for i in range(count):
            layers |= {f"{native}.{i}.{name}": [f"{ours}.{i}.{path}" for path in paths]
                       for name, paths in inner.items()}  # fmt: skip
    return layers


def native_tensors(transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """All tensors of a transformer in the original layout."""
    state, written = transformer.state_dict(), {}
    for native, paths in native_layers(transformer.config).items():
        for ending in ("weight", "bias"):
            tensor = torch.cat([state.pop(f"{path}.{ending}") for path in paths])
            # shift before scale
            written[f"{native}.{ending}"] = torch.cat(tensor.chunk(2)[::-1]) if native == LAST else tensor
    for kind, ours in (("double_blocks", "transformer_blocks"), ("single_blocks", "single_transformer_blocks")):
        for i in range(len(getattr(transformer, ours))):
            for native, path in NORMS[kind].items():
                written[f"{kind}.{i}.{native}.scale"] = state.pop(f"{ours}.{i}.{path}.weight")
    assert not state, list(state)
    return {name: tensor.clone() for name, tensor in written.items()}
