"""Small random Stable Diffusion and SDXL pipelines, and the names of their tensors in a single-file checkpoint."""

import shutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.model.flux1_models import chroma_pipeline as random_chroma
from tests.model.flux1_models import flux1_pipeline, flux1_relative
from tests.model.sd3_models import VARIANTS as _SD3
from tests.model.sd3_models import sd3_pipeline

import torch

import diffusers
import pytest
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FluxFillPipeline,
    FluxKontextPipeline,
    ModelMixin,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

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
# The same for SDXL's layout: one layer a level, attention at the inner level, and the second embedding.
XL_UNET_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0": "down_blocks.1.resnets.0",
    "input_blocks.3.1": "down_blocks.1.attentions.0",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.2.0": "up_blocks.1.resnets.0",
    "output_blocks.3.0": "up_blocks.1.resnets.1",
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
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def ldm_unet(unet: UNet2DConditionModel, names: dict[str, str] = UNET_NAMES) -> dict[str, torch.Tensor]:
    state, written = unet.state_dict(), {}
    for original, ours in names.items():
        pieces = UNET_RESNET_NAMES if ".resnets." in ours else {"": ""}
        for inner, piece in pieces.items():
            start = f"{ours}.{piece}".rstrip(".")
            for name in [name for name in state if name.startswith(start + ".")]:
                head = f"{original}.{inner}".rstrip(".")
                written[f"model.diffusion_model.{head}{name[len(start) :]}"] = state.pop(name)
    assert not state, list(state)
    return written


def ldm_vae(
    vae: ModelMixin, names: dict[str, str] = VAE_NAMES, start: str = "first_stage_model."
) -> dict[str, torch.Tensor]:
    state, written = vae.state_dict(), {}
    for original, ours in names.items():
        for name in [name for name in state if name.startswith(ours + ".")]:
            rest = name[len(ours) :].replace("conv_shortcut", "nin_shortcut")
            written[f"{start}{original}{rest}"] = state.pop(name)
    for side in ("encoder", "decoder"):
        for inner, piece in VAE_ATTENTION.items():
            for ending in ("weight", "bias"):
                tensor = state.pop(f"{side}.mid_block.attentions.0.{piece}.{ending}")
                # the original code writes the projections as 1 x 1 convolutions
                tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
                written[f"{start}{side}.mid.attn_1.{inner}.{ending}"] = tensor
    assert not state, list(state)
    return written


def ldm_clip(encoder: CLIPTextModel, start: str = "cond_stage_model.transformer.") -> dict[str, torch.Tensor]:
    written = {start + _clip_key(name): tensor for name, tensor in encoder.state_dict().items()}
    # a buffer that old checkpoints hold, in the wrong dtype at that
    written[f"{start}text_model.embeddings.position_ids"] = torch.arange(16.0)[None]
    return written


def ldm_open_clip(encoder: CLIPTextModel, start: str = "cond_stage_model.model.") -> dict[str, torch.Tensor]:
    state = {_clip_key(name).removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    # OpenCLIP multiplies from the other side; SD 2 does not use it
    projection = state["text_projection.weight"].T if "text_projection.weight" in state else torch.zeros(width, width)
    written = {
        f"{start}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{start}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{start}ln_final.weight": state["final_layer_norm.weight"],
        f"{start}ln_final.bias": state["final_layer_norm.bias"],
        f"{start}text_projection": projection,
        f"{start}logit_scale": torch.zeros(()),
    }
    for layer in range(encoder.config.num_hidden_layers):
        block = f"{start}transformer.resblocks.{layer}"
        for ending in ("weight", "bias"):
            own = {name.split(".", 3)[3]: t for name, t in state.items() if name.startswith(f"encoder.layers.{layer}.")}
            joint = [own[f"self_attn.{piece}_proj.{ending}"] for piece in "qkv"]
            written[f"{block}.attn.in_proj_{ending}"] = torch.cat(joint)
            written[f"{block}.attn.out_proj.{ending}"] = own[f"self_attn.out_proj.{ending}"]
            written[f"{block}.mlp.c_fc.{ending}"] = own[f"mlp.fc1.{ending}"]
            written[f"{block}.mlp.c_proj.{ending}"] = own[f"mlp.fc2.{ending}"]
            written[f"{block}.ln_1.{ending}"] = own[f"layer_norm1.{ending}"]
            written[f"{block}.ln_2.{ending}"] = own[f"layer_norm2.{ending}"]
    # a last layer that SD 2 leaves out
    extra = f"{start}transformer.resblocks.{encoder.config.num_hidden_layers}.ln_1.weight"
    return {**written, extra: torch.ones(width)}


def small_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: k for k, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, pad_token=pad_token)


def _random_pipeline() -> StableDiffusionPipeline:
    tokenizer = small_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8, sample_size=16,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    text_encoder = CLIPTextModel(text)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    _disturb(unet, vae, text_encoder)
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _disturb(*modules: torch.nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                # fresh norms and biases are ones and zeros, among which a wrong order would not show
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))


def _random_xl_pipeline(
    channels: tuple[int, int] = (16, 32), widths: tuple[int, int] = (16, 24)
) -> StableDiffusionXLPipeline:
    """`channels` of the UNet's levels, `widths` of the text encoders."""
    tokenizers = small_tokenizer(), small_tokenizer("!")
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=channels, layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=sum(widths),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=16,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    first, second = (
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=16, projection_dim=20, hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for tokenizer, width, layers, activation in zip(
            tokenizers, widths, (3, 4), ("quick_gelu", "gelu"), strict=True
        )
    )  # fmt: skip
    encoders = CLIPTextModel(first), CLIPTextModelWithProjection(second)
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    _disturb(unet, vae, *encoders)
    return StableDiffusionXLPipeline(
        vae=vae.eval(), unet=unet.eval(), text_encoder=encoders[0].eval(), text_encoder_2=encoders[1].eval(),
        tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def _seeded(make: Callable[..., Any], *arguments: Any) -> Any:
    """A pipeline whose random weights are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments)


def _saved(pipeline: DiffusionPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_pipeline() -> StableDiffusionXLPipeline:
    """Random weights; tests must not change it."""
    return _seeded(_random_xl_pipeline)


@pytest.fixture(scope="session")
def xl_folder(xl_pipeline, tmp_path_factory) -> Path:
    """The small SDXL as a diffusers folder; tests must not change it."""
    return _saved(xl_pipeline, tmp_path_factory.mktemp("base model xl"))


@pytest.fixture(scope="session")
def wide_xl_folder(tmp_path_factory) -> Path:
    """The same with layers that are large enough to be quantized, in every component."""
    return _saved(_seeded(_random_xl_pipeline, (32, 64), (64, 64)), tmp_path_factory.mktemp("wide xl"))


@pytest.fixture(scope="session")
def xl_tensors(xl_pipeline) -> dict[str, torch.Tensor]:
    """The small SDXL's tensors under their names in a single-file checkpoint."""
    return {
        **ldm_unet(xl_pipeline.unet, XL_UNET_NAMES),
        **ldm_vae(xl_pipeline.vae),
        **ldm_clip(xl_pipeline.text_encoder, "conditioner.embedders.0.transformer."),
        **ldm_open_clip(xl_pipeline.text_encoder_2, "conditioner.embedders.1.model."),
    }


@pytest.fixture(scope="session")
def small_pipeline() -> StableDiffusionPipeline:
    """Random weights; tests must not change it."""
    return _seeded(_random_pipeline)


@pytest.fixture(scope="session")
def small_folder(small_pipeline, tmp_path_factory) -> Path:
    """The small pipeline as a diffusers folder; tests must not change it."""
    return _saved(small_pipeline, tmp_path_factory.mktemp("base model"))


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


# --- inpainting


def _inpainting(
    pipeline: DiffusionPipeline, kind: type[DiffusionPipeline], changes: dict[str, Any] | None = None, **options: Any
) -> DiffusionPipeline:
    """The same with a UNet of 9 channels, and a VAE that gives an image the same latents each time.

    Args:
        pipeline: whose components it gets.
        kind: its class.
        changes: options of the UNet.
        options: of the pipeline.
    """
    # without diffusers' notes of which options are defaults, which would bring the default back
    options_of = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel.from_config({**options_of, "in_channels": 9, **(changes or {})})
    _disturb(unet)
    vae = AutoencoderKL.from_config(pipeline.vae.config)
    vae.load_state_dict(pipeline.vae.state_dict())
    with torch.no_grad():
        vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0, -30
    return kind(**{**pipeline.components, "unet": unet.eval(), "vae": vae.eval(), **options})


@pytest.fixture(scope="session")
def inpainting_folder(small_pipeline, tmp_path_factory) -> Path:
    """A small Stable Diffusion for inpainting with random weights; tests must not change it."""
    pipeline = _seeded(
        partial(_inpainting, requires_safety_checker=False), small_pipeline, StableDiffusionInpaintPipeline
    )
    return _saved(pipeline, tmp_path_factory.mktemp("inpainting"))


@pytest.fixture(scope="session")
def inpainting_2_folder(small_pipeline, tmp_path_factory) -> Path:
    """The same as 2.0 has it: another tokenizer and activation of the text encoder, matrices around attention."""
    text = CLIPTextConfig.from_dict({**small_pipeline.text_encoder.config.to_dict(), "hidden_act": "gelu"})
    encoder = CLIPTextModel(text)
    encoder.load_state_dict(small_pipeline.text_encoder.state_dict())
    changes = {"use_linear_projection": True, "attention_head_dim": [4, 8]}
    own = {"requires_safety_checker": False, "tokenizer": small_tokenizer("!"), "text_encoder": encoder.eval()}
    pipeline = _seeded(partial(_inpainting, **own), small_pipeline, StableDiffusionInpaintPipeline, changes)
    return _saved(pipeline, tmp_path_factory.mktemp("inpainting 2"))


@pytest.fixture(scope="session")
def xl_inpainting_folder(xl_pipeline, tmp_path_factory) -> Path:
    """The same of SDXL."""
    pipeline = _seeded(partial(_inpainting, add_watermarker=False), xl_pipeline, StableDiffusionXLInpaintPipeline)
    return _saved(pipeline, tmp_path_factory.mktemp("inpainting xl"))


@pytest.fixture(scope="session")
def wide_xl_inpainting_folder(wide_xl_folder, tmp_path_factory) -> Path:
    """The same with layers that are large enough to be quantized."""
    wide = StableDiffusionXLPipeline.from_pretrained(wide_xl_folder, add_watermarker=False)
    pipeline = _seeded(partial(_inpainting, add_watermarker=False), wide, StableDiffusionXLInpaintPipeline)
    return _saved(pipeline, tmp_path_factory.mktemp("wide inpainting xl"))


# --- Flux.1

_FLUX1 = ("dev", "schnell")


@pytest.fixture(scope="session")
def flux1_pipelines() -> dict:
    """ "dev" and "schnell" -> a small Flux.1 pipeline with random weights; tests must not change it."""
    return {variant: _seeded(flux1_pipeline, variant, small_tokenizer()) for variant in _FLUX1}


@pytest.fixture(scope="session")
def flux1_folders(flux1_pipelines, tmp_path_factory) -> dict[str, Path]:
    """The same as diffusers folders; tests must not change them."""
    return {
        name: _saved(pipeline, tmp_path_factory.mktemp(f"flux1 {name}")) for name, pipeline in flux1_pipelines.items()
    }


@pytest.fixture(scope="session")
def wide_flux1_folders(tmp_path_factory) -> dict[str, Path]:
    """The same with layers that are large enough to be quantized, in every component."""
    return {
        name: _saved(
            _seeded(flux1_pipeline, name, small_tokenizer(), 64, 4), tmp_path_factory.mktemp(f"wide flux1 {name}")
        )
        for name in _FLUX1
    }


# --- Flux.1 Kontext and Fill

_FLUX1_RELATIVES = {"kontext": FluxKontextPipeline, "fill": FluxFillPipeline}


@pytest.fixture(scope="session")
def flux1_relatives(flux1_pipelines) -> dict:
    """ "kontext" and "fill" -> a small pipeline with random weights; tests must not change it."""
    return {name: _seeded(flux1_relative, flux1_pipelines["dev"], kind) for name, kind in _FLUX1_RELATIVES.items()}


@pytest.fixture(scope="session")
def flux1_relative_folders(flux1_relatives, tmp_path_factory) -> dict[str, Path]:
    """The same as diffusers folders; tests must not change them."""
    return {name: _saved(pipeline, tmp_path_factory.mktemp(name)) for name, pipeline in flux1_relatives.items()}


@pytest.fixture(scope="session")
def wide_flux1_relative_folders(tmp_path_factory) -> dict[str, Path]:
    """The same with layers that are large enough to be quantized, in every component."""
    dev = _seeded(flux1_pipeline, "dev", small_tokenizer(), 64, 4)
    return {
        name: _saved(_seeded(flux1_relative, dev, kind), tmp_path_factory.mktemp(f"wide {name}"))
        for name, kind in _FLUX1_RELATIVES.items()
    }


# --- Chroma


@pytest.fixture(scope="session")
def chroma_pipeline():
    """A small Chroma pipeline with random weights; tests must not change it."""
    return _seeded(random_chroma)


@pytest.fixture(scope="session")
def chroma_folder(chroma_pipeline, tmp_path_factory) -> Path:
    """The same as a diffusers folder; tests must not change it."""
    return _saved(chroma_pipeline, tmp_path_factory.mktemp("chroma"))


@pytest.fixture(scope="session")
def wide_chroma_folder(tmp_path_factory) -> Path:
    """The same with layers that are large enough to be quantized, in every component."""
    return _saved(_seeded(random_chroma, 64, 4), tmp_path_factory.mktemp("wide chroma"))


# --- Flux.2

_FLUX2_WORDS = "a red cat blue dog shape number 0 1 2 3 4 5 6 you are an ai that reasons about image descriptions"
_FLUX2_CHATS = {
    # as in the published tokenizers, dev's writes the start of the text itself, and Klein's asks for an answer
    "dev": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content[0].text }} {% endfor %}",
    "klein": (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% if not enable_thinking %} [silent]{% endif %}{% endif %}"
    ),
}


def _flux2_tokenizer(variant: str):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<s>", "<unk>", "[system]", "[user]", "[assistant]", "[silent]"]
    words = {word: number for number, word in enumerate(dict.fromkeys([*marks, *_FLUX2_WORDS.split()]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>",
        padding_side="left" if variant == "dev" else "right", chat_template=_FLUX2_CHATS[variant],
    )  # fmt: skip


def _flux2_pipeline(variant: str, width: int = 16, heads: int = 2):
    """Random weights; the numbers of layers of the text encoders are the least from which captions can be taken.

    `width` of the text encoder, `heads` of the transformer with 16 channels each.
    """
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

    tokenizer = _flux2_tokenizer(variant)
    sizes = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": width // 8, "head_dim": 8}
    text = {**sizes, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "initializer_range": 0.2}
    if variant == "dev":
        vision = {**sizes, "model_type": "pixtral", "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
        language = {**text, "model_type": "mistral", "num_hidden_layers": 31}
        encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=language, vision_config=vision))
    else:
        # the small Klein's encoder has one matrix for reading and writing words
        encoder = Qwen3ForCausalLM(Qwen3Config(**text, num_hidden_layers=28, tie_word_embeddings=True))
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=heads,
        joint_attention_dim=3 * width, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=variant == "dev",
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=4, sample_size=64,
    )  # fmt: skip
    with torch.no_grad():
        for module in (transformer, vae, encoder):
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.2, 3.0)
    kind = Flux2Pipeline if variant == "dev" else Flux2KleinPipeline
    return kind(
        # dynamic shifting as in the published models
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


@pytest.fixture(scope="session")
def flux2_pipelines() -> dict:
    """ "dev" and "klein" -> a small Flux.2 pipeline with random weights; tests must not change it."""
    pipelines = {}
    for variant in _FLUX2_CHATS:
        pipelines[variant] = _seeded(_flux2_pipeline, variant)
        pipelines[variant].set_progress_bar_config(disable=True)
    return pipelines


@pytest.fixture(scope="session")
def flux2_folders(flux2_pipelines, tmp_path_factory) -> dict[str, Path]:
    """The same as diffusers folders; tests must not change them."""
    return {
        variant: _saved(pipeline, tmp_path_factory.mktemp(f"flux2 {variant}"))
        for variant, pipeline in flux2_pipelines.items()
    }


@pytest.fixture(scope="session")
def wide_flux2_folders(tmp_path_factory) -> dict[str, Path]:
    """The same with layers that are large enough to be quantized, in every component."""
    return {
        variant: _saved(_seeded(_flux2_pipeline, variant, 64, 4), tmp_path_factory.mktemp(f"wide flux2 {variant}"))
        for variant in _FLUX2_CHATS
    }


# Written by hand, from the layout of the original code: native layer -> the layers of diffusers that it stands for.
FLUX2_OUTSIDE = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_guidance_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_guidance_embed.timestep_embedder.linear_2"],
    "double_stream_modulation_img.lin": ["double_stream_modulation_img.linear"],
    "double_stream_modulation_txt.lin": ["double_stream_modulation_txt.linear"],
    "single_stream_modulation.lin": ["single_stream_modulation.linear"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
FLUX2_GUIDANCE = {
    "guidance_in.in_layer": ["time_guidance_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_guidance_embed.guidance_embedder.linear_2"],
}
FLUX2_DOUBLE = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.linear_in"],
    "img_mlp.2": ["ff.linear_out"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.linear_in"],
    "txt_mlp.2": ["ff_context.linear_out"],
}
FLUX2_SINGLE = {"linear1": ["attn.to_qkv_mlp_proj"], "linear2": ["attn.to_out"]}
FLUX2_NORMS = {
    "double_blocks": {
        "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    },
    "single_blocks": {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
}  # fmt: skip


def _flux2_layers(config) -> dict[str, list[str]]:
    layers = dict(FLUX2_OUTSIDE) | (FLUX2_GUIDANCE if config["guidance_embeds"] else {})
    for native, ours, count, inner in (
        ("double_blocks", "transformer_blocks", config["num_layers"], FLUX2_DOUBLE),
        ("single_blocks", "single_transformer_blocks", config["num_single_layers"], FLUX2_SINGLE),
    ):
        for i in range(count):
            layers |= {f"{native}.{i}.{name}": [f"{ours}.{i}.{path}" for path in paths]
                       for name, paths in inner.items()}  # fmt: skip
    return layers


def _flux2_tensors(transformer) -> dict[str, torch.Tensor]:
    state, written = transformer.state_dict(), {}
    for native, paths in _flux2_layers(transformer.config).items():
        weight = torch.cat([state.pop(f"{path}.weight") for path in paths])
        if native.startswith("final_layer.adaLN"):
            # shift before scale
            weight = torch.cat(weight.chunk(2)[::-1])
        written[f"{native}.weight"] = weight
    for kind, ours in (("double_blocks", "transformer_blocks"), ("single_blocks", "single_transformer_blocks")):
        for i in range(len(getattr(transformer, ours))):
            for native, path in FLUX2_NORMS[kind].items():
                written[f"{kind}.{i}.{native}.scale"] = state.pop(f"{ours}.{i}.{path}.weight")
    assert not state, list(state)
    return written


@pytest.fixture(scope="session")
def flux2_layers():
    """flux2_layers(config) -> native layer -> the layers of diffusers that it stands for, of a transformer's config."""
    return _flux2_layers


@pytest.fixture(scope="session")
def flux2_tensors():
    """flux2_tensors(transformer) -> its tensors in the original layout."""
    return _flux2_tensors


# --- families with one kind of model


def _fixtures_of(family: str, heads: int, *given: Callable[[], Any]) -> dict[str, Any]:
    """Fixtures of a family's small models, which are random.

    `<family>_pipeline` and `<family>_folder` are the same in memory and as a folder of diffusers; tests must not change
    them. `own_<family>_folder` is a copy that a test may break. `wide_<family>_folder` has layers that are large enough
    to be quantized, in every component.

    Args:
        family: of the file `<family>_base.py`, whose `random_<family>` makes them.
        heads: of the last one's transformer; its text encoder has a width of 64.
        given: make what `random_<family>` takes before these sizes.
    """
    # imported when it is asked for: transformers takes seconds
    made = partial(import_module, f"tests.model.{family}_base")

    def random(*sizes: int) -> Any:
        return _seeded(getattr(made(), f"random_{family}"), *(make() for make in given), *sizes)

    def saved(pipeline: Any, folder: Path) -> Path:
        return getattr(made(), f"saved_{family}", _saved)(pipeline, folder)

    @pytest.fixture(scope="session", name=f"{family}_pipeline")
    def pipeline():
        found = random()
        found.set_progress_bar_config(disable=True)
        return found

    @pytest.fixture(scope="session", name=f"{family}_folder")
    def folder(request, tmp_path_factory) -> Path:
        return saved(request.getfixturevalue(f"{family}_pipeline"), tmp_path_factory.mktemp(family))

    @pytest.fixture(name=f"own_{family}_folder")
    def own(request, tmp_path) -> Path:
        return Path(shutil.copytree(request.getfixturevalue(f"{family}_folder"), tmp_path / "base model"))

    @pytest.fixture(scope="session", name=f"wide_{family}_folder")
    def wide_folder(tmp_path_factory) -> Path:
        return saved(random(64, heads), tmp_path_factory.mktemp(f"wide {family}"))

    return {f"_{family}_{name}": own for name, own in enumerate((pipeline, folder, own, wide_folder))}


for _family in ("zimage", "qwen", "krea2", "anima", "sana", "ideogram"):
    globals().update(_fixtures_of(_family, 4))
globals().update(_fixtures_of("ernie", 8) | _fixtures_of("hidream", 4, small_tokenizer))


# --- Qwen-Image-Edit

_QWEN_EDITS = {"edit": False, "plus": True}


@pytest.fixture(scope="session")
def qwen_edit_pipelines() -> dict:
    """ "edit" and "plus" -> a small pipeline with random weights; tests must not change it."""
    from tests.model.qwen_base import random_qwen_edit

    return {name: _seeded(random_qwen_edit, plus) for name, plus in _QWEN_EDITS.items()}


@pytest.fixture(scope="session")
def qwen_edit_folders(qwen_edit_pipelines, tmp_path_factory) -> dict[str, Path]:
    """The same as diffusers folders; tests must not change them."""
    from tests.model.qwen_base import save_qwen_edit

    return {
        name: save_qwen_edit(pipeline, tmp_path_factory.mktemp(f"qwen {name}"))
        for name, pipeline in qwen_edit_pipelines.items()
    }


@pytest.fixture(scope="session")
def wide_qwen_edit_folder(tmp_path_factory) -> Path:
    """Plus with layers that are large enough to be quantized, in every component."""
    from tests.model.qwen_base import random_qwen_edit, save_qwen_edit

    return save_qwen_edit(_seeded(random_qwen_edit, True, 64, 4), tmp_path_factory.mktemp("wide qwen plus"))


# --- Stable Diffusion 3 and 3.5


@pytest.fixture(scope="session")
def sd3_pipelines() -> dict:
    """ "3" and "3.5" -> a small pipeline with random weights; tests must not change it."""
    return {variant: _seeded(sd3_pipeline, variant, small_tokenizer()) for variant in _SD3}


@pytest.fixture(scope="session")
def sd3_folders(sd3_pipelines, tmp_path_factory) -> dict[str, Path]:
    """The same as diffusers folders; tests must not change them."""
    return {name: _saved(pipeline, tmp_path_factory.mktemp(f"sd {name}")) for name, pipeline in sd3_pipelines.items()}


@pytest.fixture(scope="session")
def wide_sd3_folder(tmp_path_factory) -> Path:
    """3.5 with layers that are large enough to be quantized, in every component."""
    return _saved(_seeded(sd3_pipeline, "3.5", small_tokenizer(), 64, 4), tmp_path_factory.mktemp("wide sd3"))


# --- PixArt alpha and Sigma

_PIXART = ("alpha", "sigma")


@pytest.fixture(scope="session")
def pixart_pipelines() -> dict:
    """ "alpha" and "sigma" -> a small PixArt pipeline with random weights; tests must not change it."""
    from tests.model.pixart_base import random_pixart

    return {variant: _seeded(random_pixart, variant) for variant in _PIXART}


@pytest.fixture(scope="session")
def pixart_folders(pixart_pipelines, tmp_path_factory) -> dict[str, Path]:
    """The same as diffusers folders; tests must not change them."""
    return {
        name: _saved(pipeline, tmp_path_factory.mktemp(f"pixart {name}")) for name, pipeline in pixart_pipelines.items()
    }


@pytest.fixture(scope="session")
def wide_pixart_folder(tmp_path_factory) -> Path:
    """Sigma with layers that are large enough to be quantized, in every component."""
    from tests.model.pixart_base import random_pixart

    return _saved(_seeded(random_pixart, "sigma", 64, 8), tmp_path_factory.mktemp("wide pixart"))


@pytest.fixture(scope="session")
def full_size_models() -> tuple:
    """Descriptions of the published models of all families, on the meta device; tests must not change them."""
    from tests import full_size

    return full_size.full_size_models()


# a family -> the fixture of its small folders, and which of several it is
_SMALL_FOLDERS = {
    "SD 1.5": ("small_folder", ""), "SDXL": ("xl_folder", ""),
    "SD 1.5 inpainting": ("inpainting_folder", ""), "SD 2.0 inpainting": ("inpainting_2_folder", ""),
    "SDXL inpainting": ("xl_inpainting_folder", ""),
    "SD 3": ("sd3_folders", "3"),
    "SD 3.5": ("sd3_folders", "3.5"), "Flux.1": ("flux1_folders", "dev"),
    "Flux.1 Kontext": ("flux1_relative_folders", "kontext"), "Flux.1 Fill": ("flux1_relative_folders", "fill"),
    "Flux.2 dev": ("flux2_folders", "dev"),
    "Flux.2 Klein": ("flux2_folders", "klein"), "Z-Image": ("zimage_folder", ""), "Chroma": ("chroma_folder", ""),
    "Qwen-Image": ("qwen_folder", ""), "Qwen-Image-Edit": ("qwen_edit_folders", "edit"),
    "Ernie-Image": ("ernie_folder", ""), "Krea 2": ("krea2_folder", ""),
    "Anima": ("anima_folder", ""),
    "HiDream": ("hidream_folder", ""),
    "PixArt alpha": ("pixart_folders", "alpha"), "PixArt Sigma": ("pixart_folders", "sigma"),
    "Sana": ("sana_folder", ""), "Ideogram 4": ("ideogram_folder", ""),
}  # fmt: skip


@pytest.fixture
def folder_of(request):
    """folder_of("Z-Image") -> the small model of a family as a diffusers folder; tests must not change it."""

    def find(family: str) -> Path:
        fixture, which = _SMALL_FOLDERS[family]
        found = request.getfixturevalue(fixture)
        return found[which] if which else found

    return find


class MetaFile:
    """Stands for a `WeightsFile` of gigabytes: its tensors have no data."""

    def __init__(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        self.path, self.metadata, self._tensors = path, {}, tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def tensors(self, names):
        return ((name, self._tensors[name]) for name in names)


@pytest.fixture
def pretend_file(monkeypatch):
    """pretend_file(tensors): each single file that is loaded holds these tensors, which may be on the meta device."""

    def pretend(tensors: dict[str, torch.Tensor]) -> None:
        monkeypatch.setattr("modules.model.single_file.WeightsFile", partial(MetaFile, tensors))

    return pretend
