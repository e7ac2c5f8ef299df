"""Small random Krea 2 pipelines of the real classes, and the names of the transformer's tensors in its native files."""

from tests.model.qwen_base import qwen_tokenizer, small_vae, special_ids, unsettle

import torch
from torch import Tensor, nn

from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLModel

# of the text encoder's hidden states; the published model has twelve
LAYERS = (1, 2)
# Written by hand, from the layout of the original code.
OUTSIDE = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
}
BLOCKS = {
    "blocks": "transformer_blocks",
    "txtfusion.layerwise_blocks": "text_fusion.layerwise_blocks",
    "txtfusion.refiner_blocks": "text_fusion.refiner_blocks",
}
IN_BLOCKS = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
NORMS = {
    "prenorm": "norm1",
    "postnorm": "norm2",
    "attn.qknorm.qnorm": "attn.norm_q",
    "attn.qknorm.knorm": "attn.norm_k",
}


def random_krea2(width: int = 16, heads: int = 2) -> Krea2Pipeline:
    """`width` of the text encoder, `heads` of the transformer with 16 channels each."""
    tokenizer = qwen_tokenizer()
    encoder = Qwen3VLModel(Qwen3VLConfig(
        text_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": width // 2, "num_hidden_layers": 3, "vocab_size": len(tokenizer), "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [width // 4 - 2, 1, 1], "rope_theta": 1e4,
                                "mrope_interleaved": True},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
            "patch_size": 4, "deepstack_visual_indexes": [0],
        },
        **special_ids(),
    ))  # fmt: skip
    transformer = Krea2Transformer2DModel(
        in_channels=16, num_layers=2, num_attention_heads=heads, num_key_value_heads=1, attention_head_dim=16,
        intermediate_size=2 * width, timestep_embed_dim=16, text_hidden_dim=width, num_text_layers=len(LAYERS),
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=width,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = small_vae()
    unsettle(transformer, vae, encoder)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("scale_shift_table"):
                parameter.normal_(std=0.5)
    return Krea2Pipeline(
        # as published, for images of a few tokens
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64, base_shift=0.5, max_shift=1.15
        ),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        text_encoder_select_layers=LAYERS,
    )


def native_layers(transformer: nn.Module) -> dict[str, str]:
    """Native path of each linear layer -> its path in diffusers."""
    found = dict(OUTSIDE)
    for native, path in BLOCKS.items():
        for number in range(len(transformer.get_submodule(path))):
            found |= {f"{native}.{number}.{inner}": f"{path}.{number}.{own}" for inner, own in IN_BLOCKS.items()}
    return found


def native_tensors(transformer: nn.Module, start: str = "") -> dict[str, Tensor]:
    """The tensors of a transformer as the original code has them."""
    state, written = transformer.state_dict(), {}
    for native, path in native_layers(transformer).items():
        for ending in ("weight", "bias"):
            if f"{path}.{ending}" in state:
                written[f"{native}.{ending}"] = state.pop(f"{path}.{ending}")
    norms = {"txtmlp.0": "txt_in.norm", "last.norm": "final_layer.norm"}
    for native, path in BLOCKS.items():
        for number in range(len(transformer.get_submodule(path))):
            norms |= {f"{native}.{number}.{inner}": f"{path}.{number}.{own}" for inner, own in NORMS.items()}
            if native == "blocks":
                # six rows one after the other
                table = state.pop(f"{path}.{number}.scale_shift_table")
                written[f"{native}.{number}.mod.lin"] = torch.cat(list(table))
    written |= {f"{native}.scale": state.pop(f"{path}.weight") for native, path in norms.items()}
    written["last.modulation.lin"] = state.pop("final_layer.scale_shift_table")
    assert not state, list(state)
    return {start + name: tensor for name, tensor in written.items()}
