"""Small random Z-Image pipelines of the real classes, and the names of their tensors in ComfyUI's files."""

import torch
from torch import Tensor, nn

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

_WORDS = "a red cat blue dog shape number 0 1 2 3 4 5 6"
_MARKS = ["<pad>", "<unk>", "[user]", "[assistant]", "[silent]"]
# as in the published tokenizer, it asks for an answer, and for one without thoughts
_CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if not enable_thinking %} [silent]{% endif %}{% endif %}"
)
# Written by hand, from ComfyUI's layout: native layer or norm -> those of diffusers that it stands for, in a block.
BLOCK = {
    "attention.qkv": ["attention.to_q", "attention.to_k", "attention.to_v"],
    "attention.out": ["attention.to_out.0"],
    "attention.q_norm": ["attention.norm_q"],
    "attention.k_norm": ["attention.norm_k"],
    **{name: [name] for name in (
        "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "feed_forward.w1", "feed_forward.w2",
        "feed_forward.w3",
    )},
}  # fmt: skip
OUTSIDE = {
    "x_embedder": ["all_x_embedder.2-1"],
    "final_layer.linear": ["all_final_layer.2-1.linear"],
    "final_layer.adaLN_modulation.1": ["all_final_layer.2-1.adaLN_modulation.1"],
    **{name: [name] for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")},
}
TOKENS = ("x_pad_token", "cap_pad_token")


def zimage_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(dict.fromkeys([*_MARKS, *_WORDS.split()]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right", chat_template=_CHAT
    )


def random_zimage(width: int = 16, heads: int = 2) -> ZImagePipeline:
    """`width` of the text encoder, `heads` of the transformer with 16 channels each."""
    tokenizer = zimage_tokenizer()
    encoder = Qwen3Model(Qwen3Config(
        hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        num_hidden_layers=3, vocab_size=len(tokenizer), initializer_range=0.2, tie_word_embeddings=True,
    ))  # fmt: skip
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16 * heads, n_layers=2, n_refiner_layers=1, n_heads=heads, n_kv_heads=heads,
        cap_feat_dim=width, axes_dims=(4, 6, 6), axes_lens=(256, 32, 32),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=64, scaling_factor=0.4,
        shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    with torch.no_grad():
        for module in (transformer, vae, encoder):
            for name, parameter in module.named_parameters():
                # fresh norms, biases and pad tokens are ones and zeros, among which a wrong order would not show
                if parameter.dim() == 1 or name in TOKENS:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return ZImagePipeline(
        # one shift for all sizes, as in the published models
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def comfy_layers(transformer: nn.Module) -> dict[str, list[str]]:
    """Native layer or norm -> the modules of diffusers that it stands for."""
    found = dict(OUTSIDE)
    for blocks in ("layers", "noise_refiner", "context_refiner"):
        # the context is told no noise level
        inner = BLOCK if blocks == "context_refiner" else BLOCK | {"adaLN_modulation.0": ["adaLN_modulation.0"]}
        for number in range(len(getattr(transformer, blocks))):
            start = f"{blocks}.{number}."
            found |= {start + native: [start + path for path in paths] for native, paths in inner.items()}
    return found


def comfy_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """The tensors of a transformer as ComfyUI's files have them."""
    state = transformer.state_dict()
    written = {name: state.pop(name) for name in TOKENS}
    for native, paths in comfy_layers(transformer).items():
        for ending in ("weight", "bias"):
            if f"{paths[0]}.{ending}" in state:
                written[f"{native}.{ending}"] = torch.cat([state.pop(f"{path}.{ending}") for path in paths])
    assert not state, list(state)
    return written
