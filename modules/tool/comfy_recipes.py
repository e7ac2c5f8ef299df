"""How ComfyUI draws with each family: which nodes, and the names under which its files are published for ComfyUI.

Names of nodes, of their inputs and of files are ComfyUI's own (its nodes and published workflows, 2026).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from modules.model.families import facts_of
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

CLIP_L, CLIP_G, T5 = "clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors"
FLUX_VAE, FLUX_2_VAE, QWEN_VAE = "ae.safetensors", "flux2-vae.safetensors", "qwen_image_vae.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How one kind of model is loaded and drawn with.

    Attributes:
        denoiser: file of a whole checkpoint, or of the denoiser alone.
        vae: its file; empty: it comes with the checkpoint.
        texts: files of text encoders, in the loader's order; none: they come with the checkpoint.
        text_type: what the loader of one or two of them calls the family.
        latent: node of the empty latent image.
        shift: node and value of another shift than ComfyUI's own for the model; None: its own.
        told: whether the guidance is told to the model, which then is called once a step.
        sampler, scheduler: by ComfyUI's names.
        sized: whether the text encoder's node is told the size of the image.
        schedule_of_size: whether steps follow the size of the image by a node of their own.
        reader: node that reads a prompt together with the picture to be edited; empty: prompts are read alone.
    """

    denoiser: str
    vae: str = ""
    texts: tuple[str, ...] = ()
    text_type: str = ""
    latent: str = "EmptySD3LatentImage"
    shift: tuple[str, float] | None = None
    told: bool = False
    sampler: str = "euler"
    scheduler: str = "simple"
    sized: bool = False
    schedule_of_size: bool = False
    reader: str = ""


def _checkpoint(name: str) -> Recipe:
    return Recipe(name, latent="EmptyLatentImage", scheduler="normal")


def _flux(name: str) -> Recipe:
    return Recipe(name, FLUX_VAE, (CLIP_L, T5), "flux", told=True)


def _klein(size: str, qwen: str) -> Recipe:
    return Recipe(
        f"flux-2-klein-base-{size}.safetensors", FLUX_2_VAE, (f"{qwen}.safetensors",), "flux2", "EmptyFlux2LatentImage",
        schedule_of_size=True,
    )  # fmt: skip


_QWEN = Recipe(
    "qwen_image_bf16.safetensors", QWEN_VAE, ("qwen_2.5_vl_7b.safetensors",), "qwen_image",
    shift=("ModelSamplingAuraFlow", 3.1),
)  # fmt: skip


def _qwen_edit(mark: str, reader: str) -> Recipe:
    return replace(_QWEN, denoiser=f"qwen_image_edit{mark}_bf16.safetensors", reader=reader)


_PIXART = Recipe(
    "PixArt-Sigma-XL-2-1024-MS.pth", "sdxl_vae.safetensors", (T5,), "pixart", "EmptyLatentImage", sampler="dpmpp_2m",
    scheduler="normal",
)  # fmt: skip
_SD_2 = dict.fromkeys(
    (ModelType.STABLE_DIFFUSION_20, ModelType.STABLE_DIFFUSION_21), _checkpoint("v2-1_768-ema-pruned.safetensors")
) | dict.fromkeys(
    (ModelType.STABLE_DIFFUSION_20_BASE, ModelType.STABLE_DIFFUSION_21_BASE),
    _checkpoint("v2-1_512-ema-pruned.safetensors"),
)

RECIPES: Mapping[ModelType, Recipe] = {
    ModelType.STABLE_DIFFUSION_15: _checkpoint("v1-5-pruned-emaonly.safetensors"),
    **_SD_2,
    ModelType.STABLE_DIFFUSION_XL_10_BASE: _checkpoint("sd_xl_base_1.0.safetensors"),
    ModelType.STABLE_DIFFUSION_15_INPAINTING: _checkpoint("sd-v1-5-inpainting.safetensors"),
    ModelType.STABLE_DIFFUSION_20_INPAINTING: _checkpoint("512-inpainting-ema.safetensors"),
    ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING: _checkpoint("sd_xl_base_1.0_inpainting_0.1.safetensors"),
    # the text encoders are not in the checkpoint
    ModelType.STABLE_DIFFUSION_3: Recipe("sd3_medium.safetensors", texts=(CLIP_L, CLIP_G, T5), scheduler="sgm_uniform"),
    ModelType.STABLE_DIFFUSION_35: Recipe(
        "sd3.5_large.safetensors", texts=(CLIP_L, CLIP_G, T5), scheduler="sgm_uniform"
    ),
    ModelType.FLUX_DEV_1: _flux("flux1-dev.safetensors"),
    ModelType.FLUX_KONTEXT_DEV_1: _flux("flux1-dev-kontext_fp8_scaled.safetensors"),
    ModelType.FLUX_FILL_DEV_1: _flux("flux1-fill-dev.safetensors"),
    ModelType.FLUX_2: Recipe(
        "flux2_dev_fp8mixed.safetensors", FLUX_2_VAE, ("mistral_3_small_flux2_bf16.safetensors",), "flux2",
        "EmptyFlux2LatentImage", told=True, schedule_of_size=True,
    ),
    ModelType.CHROMA_1: Recipe(
        "Chroma1-HD.safetensors", FLUX_VAE, (T5,), "chroma", shift=("ModelSamplingAuraFlow", 1.0)
    ),
    ModelType.Z_IMAGE: Recipe(
        "z_image_bf16.safetensors", FLUX_VAE, ("qwen_3_4b.safetensors",), "lumina2",
        shift=("ModelSamplingAuraFlow", 3.0),
    ),
    ModelType.QWEN: _QWEN,
    ModelType.QWEN_EDIT: _qwen_edit("", "TextEncodeQwenImageEdit"),
    ModelType.ERNIE: Recipe(
        "ernie-image.safetensors", FLUX_2_VAE, ("ministral-3-3b.safetensors",), "flux2", "EmptyFlux2LatentImage"
    ),
    ModelType.KREA_2: Recipe("krea2_raw_bf16.safetensors", QWEN_VAE, ("qwen3vl_4b_bf16.safetensors",), "krea2"),
    ModelType.ANIMA: Recipe(
        "anima-base-v1.0.safetensors", QWEN_VAE, ("qwen_3_06b_base.safetensors",), "stable_diffusion",
        "EmptyLatentImage", sampler="er_sde",
    ),
    ModelType.HI_DREAM_FULL: Recipe(
        "hidream_i1_full_fp16.safetensors", FLUX_VAE,
        (
            "clip_l_hidream.safetensors", "clip_g_hidream.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors",
            "llama_3.1_8b_instruct_fp8_scaled.safetensors",
        ),
        shift=("ModelSamplingSD3", 3.0), sampler="uni_pc",
    ),
    ModelType.PIXART_SIGMA: _PIXART,
    ModelType.PIXART_ALPHA: replace(
        _PIXART, denoiser="PixArt-XL-2-1024-MS.pth", vae="vae-ft-mse-840000-ema-pruned.safetensors", sized=True
    ),
}  # fmt: skip
# part of a model's name, in small letters -> what such a model is drawn with instead of its type's recipe
_NAMED = {
    ModelType.FLUX_2: {"9b": _klein("9b", "qwen_3_8b"), "klein": _klein("4b", "qwen_3_4b")},
    ModelType.QWEN_EDIT: {mark: _qwen_edit(f"_{mark}", "TextEncodeQwenImageEditPlus") for mark in ("2509", "2511")},
    ModelType.FLUX_DEV_1: {"schnell": replace(_flux("flux1-schnell.safetensors"), told=False)},
    ModelType.STABLE_DIFFUSION_35: {
        "medium": replace(RECIPES[ModelType.STABLE_DIFFUSION_35], denoiser="sd3.5_medium.safetensors")
    },
}


def recipe_of(model_type: ModelType, model_name: str) -> Recipe:
    """How ComfyUI draws with a model.

    Args:
        model_type: of it.
        model_name: of the base model, which tells kinds of one type apart.

    Raises:
        UserError: ComfyUI does not know the family, or it is not known here how it draws with it.
    """
    for mark, recipe in _NAMED.get(model_type, {}).items():
        if mark in model_name.lower():
            return recipe
    if model_type in RECIPES:
        return RECIPES[model_type]
    if facts_of(model_type) is None:
        raise UserError(f"{model_type}: models of this type can't be trained here, so there is no workflow for them.")
    raise UserError(f"{model_type}: no workflow is known with which ComfyUI draws with this model.")
