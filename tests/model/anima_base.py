"""Small random models of Anima of the real classes, and the names of the transformer's tensors in its native files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from tests.model.flux1_models import t5_tokenizer
from tests.model.qwen_base import qwen_tokenizer, small_vae, unsettle

import torch.nn.functional as F
from torch import Tensor, nn

from diffusers import (
    AnimaAutoBlocks,
    AnimaModularPipeline,
    AnimaTextConditioner,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers import transformer_cosmos
from transformers import Qwen3Config, Qwen3Model

# Written by hand, from the layout of the original code.
OUTSIDE = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
}
IN_BLOCKS = {
    "adaln_modulation_self_attn.1": "norm1.linear_1",
    "adaln_modulation_self_attn.2": "norm1.linear_2",
    "adaln_modulation_cross_attn.1": "norm2.linear_1",
    "adaln_modulation_cross_attn.2": "norm2.linear_2",
    "adaln_modulation_mlp.1": "norm3.linear_1",
    "adaln_modulation_mlp.2": "norm3.linear_2",
    "self_attn.q_proj": "attn1.to_q",
    "self_attn.k_proj": "attn1.to_k",
    "self_attn.v_proj": "attn1.to_v",
    "self_attn.output_proj": "attn1.to_out.0",
    "cross_attn.q_proj": "attn2.to_q",
    "cross_attn.k_proj": "attn2.to_k",
    "cross_attn.v_proj": "attn2.to_v",
    "cross_attn.output_proj": "attn2.to_out.0",
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
}
NORMS = {
    "self_attn.q_norm": "attn1.norm_q",
    "self_attn.k_norm": "attn1.norm_k",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
}


def random_anima(width: int = 16, heads: int = 2) -> AnimaModularPipeline:
    """`width` of captions, `heads` of the transformer with 16 channels each."""
    tokenizer, words = qwen_tokenizer(), t5_tokenizer()
    encoder = Qwen3Model(Qwen3Config(
        hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, num_key_value_heads=1,
        head_dim=width // 2, num_hidden_layers=3, vocab_size=len(tokenizer), initializer_range=0.2,
    ))  # fmt: skip
    conditioner = AnimaTextConditioner(
        source_dim=width, target_dim=width, model_dim=width, num_layers=2, num_attention_heads=2,
        target_vocab_size=len(words),
    )  # fmt: skip
    transformer = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=heads, attention_head_dim=16, num_layers=2,
        text_embed_dim=width, adaln_lora_dim=width, max_size=(4, 32, 32), rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )  # fmt: skip
    vae = small_vae()
    unsettle(transformer, vae, encoder, conditioner)
    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        text_encoder=encoder.eval(), tokenizer=tokenizer, t5_tokenizer=words, text_conditioner=conditioner.eval(),
        transformer=transformer.eval(), vae=vae.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    return pipeline


def saved_anima(pipeline: AnimaModularPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def loaded_anima(folder: Path) -> AnimaModularPipeline:
    """A folder as diffusers loads it."""
    pipeline = AnimaModularPipeline.from_pretrained(str(folder))
    pipeline.load_components()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def masks_are_scaled() -> Iterator[None]:
    """What diffusers' transformer takes of torchvision, which is not needed here otherwise."""

    def resize(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
        return F.interpolate(mask, size, mode=interpolation)

    before = getattr(transformer_cosmos, "transforms", None)
    modes = SimpleNamespace(NEAREST="nearest")
    transformer_cosmos.transforms = SimpleNamespace(functional=SimpleNamespace(resize=resize), InterpolationMode=modes)
    try:
        yield
    finally:
        if before is None:
            del transformer_cosmos.transforms
        else:
            transformer_cosmos.transforms = before


def native_layers(transformer: nn.Module) -> dict[str, str]:
    """Native path of each linear layer -> its path in diffusers."""
    found = dict(OUTSIDE)
    for number in range(len(transformer.transformer_blocks)):
        found |= {f"blocks.{number}.{inner}": f"transformer_blocks.{number}.{own}" for inner, own in IN_BLOCKS.items()}
    return found


def native_tensors(transformer: nn.Module, start: str = "net.", conditioner: nn.Module | None = None) -> dict:
    """The tensors of a transformer as the original code has them, beside those of a text conditioner."""
    state, names = transformer.state_dict(), native_layers(transformer)
    names["t_embedding_norm"] = "time_embed.norm"
    for number in range(len(transformer.transformer_blocks)):
        names |= {f"blocks.{number}.{inner}": f"transformer_blocks.{number}.{own}" for inner, own in NORMS.items()}
    written = {f"{start}{native}.weight": state.pop(f"{path}.weight") for native, path in names.items()}
    assert not state, list(state)
    beside = conditioner.state_dict() if conditioner else {}
    return written | {f"{start}llm_adapter.{name}": tensor for name, tensor in beside.items()}
