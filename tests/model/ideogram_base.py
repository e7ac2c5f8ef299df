"""Small random Ideogram 4 pipelines of the real classes, and the names of a transformer's tensors in native files."""

from tests.model.qwen_base import qwen_tokenizer, special_ids, unsettle

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLModel

# as in the published tokenizer: a text, or a list of texts and images
_CHAT = (
    "{% for m in messages %}<|im_start|> {{ m.role }} \n {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %} <|im_end|> \n {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant \n{% endif %}"
)
# Written by hand, from the layout of the original code: native layer -> those of diffusers, in a block.
BLOCK = {
    "attention.qkv": ["attention.to_q", "attention.to_k", "attention.to_v"],
    "attention.o": ["attention.to_out.0"],
    **{name: [name] for name in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaln_modulation")},
}
OUTSIDE = (
    "input_proj", "llm_cond_proj", "t_embedding.mlp_in", "t_embedding.mlp_out", "adaln_proj", "final_layer.linear",
    "final_layer.adaln_modulation",
)  # fmt: skip
NORMS = (
    *("attention.norm_q", "attention.norm_k", "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
)  # fmt: skip


def random_ideogram(width: int = 16, heads: int = 2) -> Ideogram4Pipeline:
    """`width` of the text encoder, `heads` of the transformers with 16 channels each."""
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = _CHAT
    encoder = Qwen3VLModel(Qwen3VLConfig(
        text_config={
            # captions are layers up to the 36th
            "hidden_size": width, "intermediate_size": width, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": width // 2, "num_hidden_layers": 36, "vocab_size": len(tokenizer), "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [width // 4 - 2, 1, 1], "rope_theta": 1e4,
                                "mrope_interleaved": True},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
            "patch_size": 4, "deepstack_visual_indexes": [0],
        },
        **special_ids(),
    ))  # fmt: skip
    transformers = [
        Ideogram4Transformer2DModel(
            in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=heads,
            intermediate_size=32 * heads, adaln_dim=16, llm_features_dim=13 * width, rope_theta=10000,
            mrope_section=(4, 2, 2),
        )
        for _ in range(2)
    ]  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=64, batch_norm_eps=0.1,
    )  # fmt: skip
    unsettle(*transformers, vae, encoder)
    with torch.no_grad():
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.2, 3.0)
    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformers[0].eval(),
        unconditional_transformer=transformers[1].eval(),
    )


def native_layers(transformer: nn.Module) -> dict[str, list[str]]:
    """Native path of each linear layer -> the layers of diffusers that it stands for."""
    found = {name: [name] for name in OUTSIDE}
    for number in range(len(transformer.layers)):
        start = f"layers.{number}."
        found |= {start + native: [start + path for path in paths] for native, paths in BLOCK.items()}
    return found


def native_tensors(transformer: nn.Module, start: str = "") -> dict[str, Tensor]:
    """The tensors of a transformer as the original code has them."""
    state, written = transformer.state_dict(), {}
    for native, paths in native_layers(transformer).items():
        for ending in ("weight", "bias"):
            if f"{paths[0]}.{ending}" in state:
                written[f"{native}.{ending}"] = torch.cat([state.pop(f"{path}.{ending}") for path in paths])
    norms = [f"layers.{number}.{name}" for number in range(len(transformer.layers)) for name in NORMS]
    for name in (*norms, "llm_cond_norm", "embed_image_indicator"):
        written[f"{name}.weight"] = state.pop(f"{name}.weight")
    assert not state, list(state)
    return {start + name: tensor for name, tensor in written.items()}
