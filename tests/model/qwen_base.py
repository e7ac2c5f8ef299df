"""Small random Qwen-Image pipelines of the real classes, also of those that edit, and names of tensors in files."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

_PICTURES = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
_MARKS = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *_PICTURES]
# the text around captions has as many tokens as in the published tokenizer
_WORDS = (
    "system user assistant \n , : Describe the image by detailing color shape size texture quantity text spatial "
    "relationships of objects and background a red cat blue dog number 0 1 2 3 4 5 6"
)
_EDIT_WORDS = (
    "system user assistant \n , : ( ) . ), 's Describe the key features of input image color shape size texture "
    "objects "
    "background then explain how text instruction should alter or modify Generate a new that meets requirements while "
    "maintaining consistency with original where appropriate Picture red cat blue dog number 0 1 2 3 4 5 6"
)
# Written by hand, from the layout of Wan's code: for two levels of one layer.
VAE_LAYERS = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    "encoder.conv1": "encoder.conv_in",
    "encoder.downsamples.0": "encoder.down_blocks.0",
    "encoder.downsamples.1": "encoder.down_blocks.1",
    "encoder.downsamples.2": "encoder.down_blocks.2",
    "encoder.middle.0": "encoder.mid_block.resnets.0",
    "encoder.middle.1": "encoder.mid_block.attentions.0",
    "encoder.middle.2": "encoder.mid_block.resnets.1",
    "encoder.head.0": "encoder.norm_out",
    "encoder.head.2": "encoder.conv_out",
    "decoder.conv1": "decoder.conv_in",
    "decoder.middle.0": "decoder.mid_block.resnets.0",
    "decoder.middle.1": "decoder.mid_block.attentions.0",
    "decoder.middle.2": "decoder.mid_block.resnets.1",
    "decoder.upsamples.0": "decoder.up_blocks.0.resnets.0",
    "decoder.upsamples.1": "decoder.up_blocks.0.resnets.1",
    "decoder.upsamples.2": "decoder.up_blocks.0.upsamplers.0",
    "decoder.upsamples.3": "decoder.up_blocks.1.resnets.0",
    "decoder.upsamples.4": "decoder.up_blocks.1.resnets.1",
    "decoder.head.0": "decoder.norm_out",
    "decoder.head.2": "decoder.conv_out",
}
_IN_BLOCKS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    **{name: name for name in ("resample.1", "time_conv", "norm", "to_qkv", "proj")},
}


def qwen_tokenizer(edits: bool = False) -> PreTrainedTokenizerFast:
    known = (_EDIT_WORDS if edits else _WORDS).split()
    words = {word: number for number, word in enumerate(dict.fromkeys([*_MARKS, "\n", *known]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    # words, line breaks and punctuation are tokens each
    parts = r"\n|\),|[,:.()]|'s|[^\s,:.()']+" if edits else r"\n|[,:]|[^\s,:]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(parts), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *(_PICTURES if edits else ())],
    )  # fmt: skip


def small_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.05], latents_std=[0.5, 0.7, 0.4, 0.6],
    )  # fmt: skip


@torch.no_grad()
def unsettle(*modules: nn.Module) -> None:
    """Fresh norms and biases are ones and zeros, among which a wrong order would not show."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.squeeze().dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def special_ids() -> dict[str, int]:
    """Of the tokens that stand for what is no text."""
    return {f"{name}_token_id": number for number, name in enumerate(
        ("image", "video", "vision_start", "vision_end"), _MARKS.index(_PICTURES[0])
    )}  # fmt: skip


class _PictureProcessor(Qwen2VLProcessor):
    """Without its processor of videos, which needs a library that is not here."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type:
        return type(argument)


def _add_kinds(encoder: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
    kinds = (named["input_ids"] == encoder.config.image_token_id).long()
    return given, {**named, "mm_token_type_ids": kinds}


def random_qwen_edit(plus: bool, width: int = 16, heads: int = 2) -> QwenImageEditPipeline | QwenImageEditPlusPipeline:
    """The same of the models that edit: Plus as 2511. Pictures have a token for 16 × 16 pixels, in Plus 64 × 64.

    Its text encoder is told which tokens are a picture's. diffusers 0.42.1 leaves that out (its issue 14194).
    """
    patch = 32 if plus else 8
    own, tokenizer = random_qwen(width, heads, edits=True, patch=patch), qwen_tokenizer(edits=True)
    own.text_encoder.register_forward_pre_hook(_add_kinds, with_kwargs=True)
    with torch.no_grad():
        # so that what is shown shows, and pictures change with predictions
        for name, parameter in own.transformer.named_parameters():
            if name.endswith(("to_v.weight", "to_out.0.weight")) or name == "proj_out.weight":
                parameter *= 4
    if plus:
        options = {name: value for name, value in own.transformer.config.items() if not name.startswith("_")}
        transformer = QwenImageTransformer2DModel(**{**options, "zero_cond_t": True})
        transformer.load_state_dict(own.transformer.state_dict())
        own.transformer = transformer.eval()
    # pictures are as large as they are
    pictures = Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=4 * patch**2, max_pixels=1 << 22)
    kind = QwenImageEditPlusPipeline if plus else QwenImageEditPipeline
    pipeline = kind(processor=_PictureProcessor(pictures, tokenizer, None), **own.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_qwen_edit(pipeline: QwenImageEditPipeline | QwenImageEditPlusPipeline, folder: Path) -> Path:
    """As `save_pretrained`, which can't do without a processor of videos."""
    for name, component in pipeline.components.items():
        (component.image_processor if name == "processor" else component).save_pretrained(folder / name)
    index = {name: list(pipeline.config[name]) for name in pipeline.components}
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    named = {"_class_name": type(pipeline).__name__, **index}
    (folder / "model_index.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def random_qwen(width: int = 16, heads: int = 2, edits: bool = False, patch: int = 4) -> QwenImagePipeline:
    """A pipeline.

    Args:
        width: of the text encoder.
        heads: of the transformer, with 16 channels each.
        edits: whether the tokenizer knows pictures.
        patch: pixels of a side of what the half for images sees as one.
    """
    tokenizer = qwen_tokenizer(edits)
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 1,
            "num_hidden_layers": 3, "vocab_size": len(tokenizer), "initializer_range": 0.2, "bos_token_id": 0,
            "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, width // 4 - 2], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
            "patch_size": patch,
        },
        **special_ids(),
    ))  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, num_attention_heads=heads, attention_head_dim=16,
        joint_attention_dim=width, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = small_vae()
    unsettle(transformer, vae, encoder)
    return QwenImagePipeline(
        # as published, for images of a few tokens
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64, base_shift=0.5, max_shift=0.9,
            shift_terminal=0.02,
        ),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )  # fmt: skip


def wan_tensors(vae: AutoencoderKLQwenImage, start: str = "") -> dict[str, Tensor]:
    """The tensors of a VAE as ComfyUI's file has them."""
    state, written = vae.state_dict(), {}
    for native, path in VAE_LAYERS.items():
        layers = {"": "", **{f".{inner}": f".{own}" for inner, own in _IN_BLOCKS.items()}}
        for inner, own in layers.items():
            for ending in ("weight", "bias", "gamma"):
                if f"{path}{own}.{ending}" in state:
                    written[f"{start}{native}{inner}.{ending}"] = state.pop(f"{path}{own}.{ending}")
    assert not state, list(state)
    return written
