"""A small random Stable Diffusion pipeline, and the names of its tensors in a single-file checkpoint."""

from pathlib import Path

import torch

import diffusers
import pytest
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

# Written by hand, from the layout of the original code: for two levels of two layers, attention at the outer level.
UNET_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.1.1": "down_blocks.0.attentions.0",
    "input_blocks.2.0": "down_blocks.0.resnets.1",
    "input_blocks.2.1": "down_blocks.0.attentions.1",
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.4.0": "down_blocks.1.resnets.0",
    "input_blocks.5.0": "down_blocks.1.resnets.1",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.2.0": "up_blocks.0.resnets.2",
    "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.3.0": "up_blocks.1.resnets.0",
    "output_blocks.3.1": "up_blocks.1.attentions.0",
    "output_blocks.4.0": "up_blocks.1.resnets.1",
    "output_blocks.4.1": "up_blocks.1.attentions.1",
    "output_blocks.5.0": "up_blocks.1.resnets.2",
    "output_blocks.5.1": "up_blocks.1.attentions.2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_NAMES = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down.0.block.0": "encoder.down_blocks.0.resnets.0",
    "encoder.down.0.downsample.conv": "encoder.down_blocks.0.downsamplers.0.conv",
    "encoder.down.1.block.0": "encoder.down_blocks.1.resnets.0",
    "encoder.mid.block_1": "encoder.mid_block.resnets.0",
    "encoder.mid.block_2": "encoder.mid_block.resnets.1",
    "encoder.norm_out": "encoder.conv_norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.up.1.block.0": "decoder.up_blocks.0.resnets.0",
    "decoder.up.1.block.1": "decoder.up_blocks.0.resnets.1",
    "decoder.up.1.upsample.conv": "decoder.up_blocks.0.upsamplers.0.conv",
    "decoder.up.0.block.0": "decoder.up_blocks.1.resnets.0",
    "decoder.up.0.block.1": "decoder.up_blocks.1.resnets.1",
    "decoder.mid.block_1": "decoder.mid_block.resnets.0",
    "decoder.mid.block_2": "decoder.mid_block.resnets.1",
    "decoder.norm_out": "decoder.conv_norm_out",
    "decoder.conv_out": "decoder.conv_out",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _clip_key(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def ldm_unet(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    state, written = unet.state_dict(), {}
    for original, ours in UNET_NAMES.items():
        parts = UNET_RESNET_NAMES if ".resnets." in ours else {"": ""}
        for inner, part in parts.items():
            start = f"{ours}.{part}".rstrip(".")
            for name in [name for name in state if name.startswith(start + ".")]:
                head = f"{original}.{inner}".rstrip(".")
                written[f"model.diffusion_model.{head}{name[len(start) :]}"] = state.pop(name)
    assert not state, list(state)
    return written


def ldm_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    state, written = vae.state_dict(), {}
    for original, ours in VAE_NAMES.items():
        for name in [name for name in state if name.startswith(ours + ".")]:
            rest = name[len(ours) :].replace("conv_shortcut", "nin_shortcut")
            written[f"first_stage_model.{original}{rest}"] = state.pop(name)
    for side in ("encoder", "decoder"):
        for inner, part in VAE_ATTENTION.items():
            for ending in ("weight", "bias"):
                tensor = state.pop(f"{side}.mid_block.attentions.0.{part}.{ending}")
                # the original code writes the projections as 1 x 1 convolutions
                tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
                written[f"first_stage_model.{side}.mid.attn_1.{inner}.{ending}"] = tensor
    assert not state, list(state)
    return written


def ldm_clip(encoder: CLIPTextModel) -> dict[str, torch.Tensor]:
    start = "cond_stage_model.transformer."
    written = {start + _clip_key(name): tensor for name, tensor in encoder.state_dict().items()}
    # a buffer that old checkpoints hold, in the wrong dtype at that
    written[f"{start}text_model.embeddings.position_ids"] = torch.arange(16.0)[None]
    return written


def ldm_open_clip(encoder: CLIPTextModel) -> dict[str, torch.Tensor]:
    state = {_clip_key(name).removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    start = "cond_stage_model.model."
    written = {
        f"{start}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{start}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{start}ln_final.weight": state["final_layer_norm.weight"],
        f"{start}ln_final.bias": state["final_layer_norm.bias"],
        f"{start}text_projection": torch.zeros(32, 32),
        f"{start}logit_scale": torch.zeros(()),
    }
    for layer in range(encoder.config.num_hidden_layers):
        block = f"{start}transformer.resblocks.{layer}"
        for ending in ("weight", "bias"):
            own = {name.split(".", 3)[3]: t for name, t in state.items() if name.startswith(f"encoder.layers.{layer}.")}
            joint = [own[f"self_attn.{part}_proj.{ending}"] for part in "qkv"]
            written[f"{block}.attn.in_proj_{ending}"] = torch.cat(joint)
            written[f"{block}.attn.out_proj.{ending}"] = own[f"self_attn.out_proj.{ending}"]
            written[f"{block}.mlp.c_fc.{ending}"] = own[f"mlp.fc1.{ending}"]
            written[f"{block}.mlp.c_proj.{ending}"] = own[f"mlp.fc2.{ending}"]
            written[f"{block}.ln_1.{ending}"] = own[f"layer_norm1.{ending}"]
            written[f"{block}.ln_2.{ending}"] = own[f"layer_norm2.{ending}"]
    # a last layer that SD 2 leaves out
    extra = f"{start}transformer.resblocks.{encoder.config.num_hidden_layers}.ln_1.weight"
    return {**written, extra: torch.ones(32)}


def small_tokenizer() -> CLIPTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=merges, model_max_length=16)


def _random_pipeline() -> StableDiffusionPipeline:
    tokenizer = small_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=16,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    with torch.no_grad():
        for module in (unet, vae, text_encoder):
            for parameter in module.parameters():
                # fresh norms and biases are ones and zeros, among which a wrong order would not show
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def small_pipeline() -> StableDiffusionPipeline:
    """Random weights; tests must not change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _random_pipeline()


@pytest.fixture(scope="session")
def small_folder(small_pipeline, tmp_path_factory) -> Path:
    """The small pipeline as a diffusers folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("base model")
    small_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_tensors(small_pipeline) -> dict[str, torch.Tensor]:
    """The small pipeline's tensors under their names in a single-file checkpoint."""
    return {
        **ldm_unet(small_pipeline.unet),
        **ldm_vae(small_pipeline.vae),
        **ldm_clip(small_pipeline.text_encoder),
    }


@pytest.fixture(scope="session")
def small_open_clip_tensors(small_pipeline) -> dict[str, torch.Tensor]:
    """The same with the text encoder as SD 2.x checkpoints hold it."""
    return {
        **ldm_unet(small_pipeline.unet),
        **ldm_vae(small_pipeline.vae),
        **ldm_open_clip(small_pipeline.text_encoder),
    }
