"""Small random models of Flux.1 and Chroma, and their layers in the original layout, which is written down by hand."""

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

WORDS = "a red cat blue dog shape number 0 1 2 3 4 5 6"


def t5_tokenizer() -> T5TokenizerFast:
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*marks, *((f"▁{word}", -3.0) for word in WORDS.split())], extra_ids=0)


def _t5(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", initializer_factor=2.0,
    ))  # fmt: skip


def _vae(latents: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=latents, sample_size=64,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def _sizes(width: int, heads: int) -> dict:
    return {
        "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": heads, "joint_attention_dim": width, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip


def _disturb(*modules: nn.Module) -> None:
    """Fresh norms and biases are ones and zeros, among which a wrong order would not show."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.eval().parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))


def flux1_pipeline(variant: str, clip: CLIPTokenizer, width: int = 16, heads: int = 2) -> FluxPipeline:
    """A pipeline with random weights.

    Args:
        variant: "dev" or "schnell".
        clip: CLIP's tokenizer.
        width: of the text encoders.
        heads: of the transformer, with 16 channels each.
    """
    t5 = t5_tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=width, bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
    ))  # fmt: skip
    text_encoder_2 = _t5(t5, width)
    transformer = FluxTransformer2DModel(
        pooled_projection_dim=width, guidance_embeds=variant == "dev", **_sizes(width, heads)
    )
    vae = _vae()
    _disturb(transformer, vae, text_encoder, text_encoder_2)
    # as in the published models
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True} if variant == "dev" else {}
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**dynamic), vae, text_encoder, clip, text_encoder_2, t5, transformer
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux1_relative(pipeline: FluxPipeline, kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    """Kontext or Fill of the components of dev. Its VAE gives an image the same latents each time."""
    own = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")}
    # as published, as files are known by it: 16 latents; Fill reads two tokens of them, and its pixels of the mask
    own |= {"in_channels": 64 + 64 + 256 if kind is FluxFillPipeline else 64, "out_channels": 64}
    transformer, vae = FluxTransformer2DModel(**own), _vae(16)
    _disturb(transformer, vae)
    with torch.no_grad():
        # so that what is shown shows, and pictures change with predictions
        for name, parameter in transformer.named_parameters():
            if name.endswith(("to_v.weight", "to_out.0.weight")) or name == "proj_out.weight":
                parameter *= 4
        vae.encoder.conv_out.weight[16:], vae.encoder.conv_out.bias[16:] = 0, -30
    found = kind(**{
        **{name: part for name, part in pipeline.components.items() if name in kind._get_signature_keys(kind)[0]},
        "transformer": transformer, "vae": vae,
    })  # fmt: skip
    found.set_progress_bar_config(disable=True)
    return found


def chroma_pipeline(width: int = 16, heads: int = 2) -> ChromaPipeline:
    """The same of Chroma, with the scheduler of HD."""
    tokenizer = t5_tokenizer()
    text_encoder, vae = _t5(tokenizer, width), _vae()
    transformer = ChromaTransformer2DModel(
        approximator_num_channels=16, approximator_hidden_dim=16 * heads, approximator_layers=2, **_sizes(width, heads)
    )
    _disturb(transformer, vae, text_encoder)
    pipeline = ChromaPipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), vae, text_encoder, tokenizer, transformer)
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


# what Chroma has not
MODULATIONS = ("img_mod.lin", "txt_mod.lin", "modulation.lin")
CHROMA_OUTSIDE = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "distilled_guidance_layer.in_proj": ["distilled_guidance_layer.in_proj"],
    "distilled_guidance_layer.out_proj": ["distilled_guidance_layer.out_proj"],
    "final_layer.linear": ["proj_out"],
}


def is_chroma(config) -> bool:
    return "approximator_layers" in config


def _outside(config) -> dict[str, list[str]]:
    if not is_chroma(config):
        return OUTSIDE | (GUIDANCE if config["guidance_embeds"] else {})
    start = "distilled_guidance_layer.layers"
    return CHROMA_OUTSIDE | {
        f"{start}.{i}.{native}_layer": [f"{start}.{i}.linear_{number}"]
        for i in range(config["approximator_layers"])
        for number, native in ((1, "in"), (2, "out"))
    }


def native_layers(config) -> dict[str, list[str]]:
    """Native layer -> the layers of diffusers that it stands for."""
    layers = dict(_outside(config))
    for native, ours, count, inner in (
        ("double_blocks", "transformer_blocks", config["num_layers"], DOUBLE),
        ("single_blocks", "single_transformer_blocks", config["num_single_layers"], SINGLE),
    ):
        for i in range(count):
            layers |= {f"{native}.{i}.{name}": [f"{ours}.{i}.{path}" for path in paths]
                       for name, paths in inner.items() if not (is_chroma(config) and name in MODULATIONS)}  # fmt: skip
    return layers


def native_tensors(transformer: FluxTransformer2DModel | ChromaTransformer2DModel) -> dict[str, Tensor]:
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
    for name in [name for name in state if name.startswith("distilled_guidance_layer.norms.")]:
        written[name.replace(".weight", ".scale")] = state.pop(name)
    assert not state, list(state)
    return {name: tensor.clone() for name, tensor in written.items()}
