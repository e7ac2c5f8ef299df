"""The registry of model families: what the window, tools and file recognition must know of each, without loading torch.

A family is one class in the file of its name in this folder, and one entry here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.ModelType import ModelType

# component -> options that differ from those in `resources/`
Changes = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class StandardModel:
    """A model whose architecture is known by heart.

    Attributes:
        name: for people.
        folder: in `resources/`, in diffusers' layout without weights.
        architecture, base_version: as in `ReferenceModel`.
        types: model types that it describes -> in what such models differ from it.
        mark: a part of the names of such models, in small letters, where a type has several.
    """

    name: str
    folder: str
    architecture: str
    base_version: str
    types: Mapping[ModelType, Changes]
    mark: str = ""


@dataclass(frozen=True)
class Family:
    """Facts of a family.

    Attributes:
        class_name: of its class, and of the file in this folder that holds it.
        model_types: those that it serves, the usual one first.
        components: the config's keys of its components, the denoiser first.
        sample_defaults: what a sample is drawn with where it says nothing of its own.
        file_marks: part of a tensor's name -> the types of single files that have it; several where only the user knows
            which.
        standard_models: those with a description in `resources/`.
        conditioning: where its conditioning images come from.
    """

    class_name: str
    model_types: tuple[ModelType, ...]
    components: tuple[str, ...]
    sample_defaults: Mapping[str, Any]
    file_marks: Mapping[str, tuple[ModelType, ...]] = field(default_factory=dict)
    standard_models: tuple[StandardModel, ...] = ()
    conditioning: ConditioningSource = ConditioningSource.NONE


# 2.x above 512 pixels predicts velocity; only 2.1 needs its attention in float32
_LARGE: Changes = {"unet": {"sample_size": 96}, "scheduler": {"prediction_type": "v_prediction"}}

STABLE_DIFFUSION = Family(
    "StableDiffusionModel",
    (
        ModelType.STABLE_DIFFUSION_15, ModelType.STABLE_DIFFUSION_20_BASE, ModelType.STABLE_DIFFUSION_21_BASE,
        ModelType.STABLE_DIFFUSION_20, ModelType.STABLE_DIFFUSION_21,
    ),
    ("unet", "text_encoder", "vae"),
    {"width": 512, "height": 512},
    {
        "cond_stage_model.transformer.": (ModelType.STABLE_DIFFUSION_15,),
        "cond_stage_model.model.": (
            ModelType.STABLE_DIFFUSION_21_BASE, ModelType.STABLE_DIFFUSION_21,
            ModelType.STABLE_DIFFUSION_20_BASE, ModelType.STABLE_DIFFUSION_20,
        ),
    },
    (
        StandardModel(
            "Stable Diffusion 1.x", "stable_diffusion/sd1", "stable-diffusion-v1", "sd_v1",
            {ModelType.STABLE_DIFFUSION_15: {}},
        ),
        StandardModel(
            "Stable Diffusion 2.x", "stable_diffusion/sd2", "stable-diffusion-v2-512", "sd_v2",
            {
                ModelType.STABLE_DIFFUSION_20_BASE: {},
                ModelType.STABLE_DIFFUSION_20: _LARGE,
                ModelType.STABLE_DIFFUSION_21_BASE: {},
                ModelType.STABLE_DIFFUSION_21: {**_LARGE, "unet": {**_LARGE["unet"], "upcast_attention": True}},
            },
        ),
    ),
)  # fmt: skip

STABLE_DIFFUSION_XL = Family(
    "StableDiffusionXLModel",
    (ModelType.STABLE_DIFFUSION_XL_10_BASE,),
    ("unet", "text_encoder", "text_encoder_2", "vae"),
    {"width": 1024, "height": 1024},
    {"conditioner.embedders.1.model.": (ModelType.STABLE_DIFFUSION_XL_10_BASE,)},
    (
        StandardModel(
            "SDXL", "stable_diffusion_xl", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0",
            {ModelType.STABLE_DIFFUSION_XL_10_BASE: {}},
        ),
    ),
)  # fmt: skip

FLUX_2 = Family(
    "Flux2Model",
    (ModelType.FLUX_2,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "cfg_scale": 4.0},
    {"double_stream_modulation_img.": (ModelType.FLUX_2,)},
    tuple(
        StandardModel(
            f"Flux.2 {name}", f"flux_2/{folder}", f"Flux.2-{name.lower().replace(' ', '-')}", f"flux_2_{folder}",
            {ModelType.FLUX_2: {}}, mark,
        )
        for name, folder, mark in (
            ("dev", "dev", "dev"), ("Klein 9B", "klein_9b", "9b"), ("Klein 4B", "klein_4b", "4b"),
        )
    ),
)  # fmt: skip

FLUX_1 = Family(
    "FluxModel",
    (ModelType.FLUX_DEV_1,),
    ("transformer", "text_encoder", "text_encoder_2", "vae"),
    {"width": 1024, "height": 1024, "cfg_scale": 3.5},
    {"img_mod.lin.": (ModelType.FLUX_DEV_1,)},
    tuple(
        StandardModel(f"Flux.1 {name}", f"flux_1/{name}", f"flux-1-{name}", "flux1", {ModelType.FLUX_DEV_1: {}}, name)
        for name in ("dev", "schnell")
    ),
)

CHROMA = Family(
    "ChromaModel",
    (ModelType.CHROMA_1,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 40, "cfg_scale": 3.0},
    {"distilled_guidance_layer.": (ModelType.CHROMA_1,)},
    (StandardModel("Chroma", "chroma", "chroma", "chroma", {ModelType.CHROMA_1: {}}),),
)

Z_IMAGE = Family(
    "ZImageModel",
    (ModelType.Z_IMAGE,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 28, "cfg_scale": 4.0},
    {"cap_pad_token": (ModelType.Z_IMAGE,)},
    (StandardModel("Z-Image", "z_image", "Z-Image", "z_image", {ModelType.Z_IMAGE: {}}),),
)

QWEN = Family(
    "QwenModel",
    (ModelType.QWEN,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 50, "cfg_scale": 4.0},
    {"txt_mod.1.": (ModelType.QWEN,)},
    (StandardModel("Qwen-Image", "qwen_image", "Qwen-Image", "qwen_image", {ModelType.QWEN: {}}),),
)

STABLE_DIFFUSION_3 = Family(
    "StableDiffusion3Model",
    (ModelType.STABLE_DIFFUSION_3, ModelType.STABLE_DIFFUSION_35),
    ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 28, "cfg_scale": 4.5},
    # only 3.5 has norms of queries and keys
    {"x_block.attn.ln_q.": (ModelType.STABLE_DIFFUSION_35,), "joint_blocks.": (ModelType.STABLE_DIFFUSION_3,)},
    (
        StandardModel(
            "Stable Diffusion 3 medium", "stable_diffusion_3/medium", "stable-diffusion-v3-medium", "sd3_medium",
            {ModelType.STABLE_DIFFUSION_3: {}},
        ),
        *(
            StandardModel(
                f"Stable Diffusion 3.5 {size}", f"stable_diffusion_3/{size}_35", f"stable-diffusion-v3.5-{size}",
                f"sd35_{size}", {ModelType.STABLE_DIFFUSION_35: {}}, size,
            )
            for size in ("large", "medium")
        ),
    ),
)  # fmt: skip

ERNIE = Family(
    "ErnieModel",
    (ModelType.ERNIE,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 50, "cfg_scale": 4.0},
    {"adaLN_sa_ln.": (ModelType.ERNIE,)},
    (StandardModel("Ernie-Image", "ernie_image", "Ernie-Image", "ernie_image", {ModelType.ERNIE: {}}),),
)

KREA_2 = Family(
    "Krea2Model",
    (ModelType.KREA_2,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 28, "cfg_scale": 5.5},
    {"txtfusion.projector.": (ModelType.KREA_2,), "text_fusion.projector.": (ModelType.KREA_2,)},
    (StandardModel("Krea 2", "krea_2", "Krea-2", "krea_2", {ModelType.KREA_2: {}}),),
)

HI_DREAM = Family(
    "HiDreamModel",
    (ModelType.HI_DREAM_FULL,),
    ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 50, "cfg_scale": 5.0},
    {"caption_projection.0.linear.": (ModelType.HI_DREAM_FULL,)},
    (StandardModel("HiDream-I1", "hidream", "hidream-i1", "hidream_i1", {ModelType.HI_DREAM_FULL: {}}),),
)

SANA = Family(
    "SanaModel",
    (ModelType.SANA,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 20, "cfg_scale": 4.5},
    {"mlp.inverted_conv.": (ModelType.SANA,), "ff.conv_inverted.": (ModelType.SANA,)},
    (StandardModel("Sana 1.6B", "sana", "sana", "sana", {ModelType.SANA: {}}),),
)

PIXART = Family(
    "PixArtModel",
    (ModelType.PIXART_ALPHA, ModelType.PIXART_SIGMA),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 20, "cfg_scale": 4.5, "noise_scheduler": "DPMPP"},
    # only alpha is told sizes; what both have does not tell which of them it is
    {
        "csize_embedder.": (ModelType.PIXART_ALPHA,),
        "adaln_single.emb.resolution_embedder.": (ModelType.PIXART_ALPHA,),
        "cross_attn.kv_linear.": (ModelType.PIXART_SIGMA, ModelType.PIXART_ALPHA),
        "adaln_single.emb.timestep_embedder.": (ModelType.PIXART_SIGMA, ModelType.PIXART_ALPHA),
    },
    tuple(
        StandardModel(f"PixArt {name}", f"pixart/{folder}", f"pixart-{folder}", f"pixart_{folder}", {kind: {}})
        for name, folder, kind in (
            ("alpha", "alpha", ModelType.PIXART_ALPHA), ("Sigma", "sigma", ModelType.PIXART_SIGMA),
        )
    ),
)  # fmt: skip

# a new family is one line here
FAMILIES: tuple[Family, ...] = (
    *(STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3),
    *(FLUX_1, FLUX_2, Z_IMAGE, CHROMA, QWEN, ERNIE, KREA_2, HI_DREAM, SANA, PIXART),
)


def facts_of(model_type: ModelType) -> Family | None:
    """The facts of the family that serves a type; None if there is none."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def marked_types(names: Iterable[str]) -> tuple[ModelType, ...]:
    """The types of single files with tensors of these names; several where only the user knows which, () if unknown."""
    known = list(names)
    marks = (pair for family in FAMILIES for pair in family.file_marks.items())
    return next((types for mark, types in marks if any(mark in name for name in known)), ())


def standard_models_of(model_type: ModelType) -> list[StandardModel]:
    """The models of `resources/` that describe a type."""
    family = facts_of(model_type)
    return [model for model in family.standard_models if model_type in model.types] if family else []
