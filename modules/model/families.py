"""The registry of model families: what the window, tools and file recognition must know of each, without loading torch.

A family is one class in the file of its name in this folder, and one entry here.
"""

from collections.abc import Mapping, Sequence
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
        first_weight: of families whose files have the names of another's: what the name of the denoiser's first weight
            ends with, and its number of inputs, which tells them apart.
        files_like: types of another family whose files can't be told from its own.
        pipelines: diffusers' pipelines that folders of such models name, where their components are another family's.
        foreign_pipelines: those of models with its components that can't be trained here -> what these do.
    """

    class_name: str
    model_types: tuple[ModelType, ...]
    components: tuple[str, ...]
    sample_defaults: Mapping[str, Any]
    file_marks: Mapping[str, tuple[ModelType, ...]] = field(default_factory=dict)
    standard_models: tuple[StandardModel, ...] = ()
    conditioning: ConditioningSource = ConditioningSource.NONE
    first_weight: tuple[str, int] | None = None
    files_like: tuple[ModelType, ...] = ()
    pipelines: tuple[str, ...] = ()
    foreign_pipelines: Mapping[str, str] = field(default_factory=dict)


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

# noised latents, mask, and latents of the image without what the mask covers
_FILLS: Changes = {"unet": {"in_channels": 9}}
_FIRST_OF_UNET = ("model.diffusion_model.input_blocks.0.0.weight", 9)

STABLE_DIFFUSION_INPAINTING = Family(
    "StableDiffusionInpaintingModel",
    (ModelType.STABLE_DIFFUSION_15_INPAINTING, ModelType.STABLE_DIFFUSION_20_INPAINTING),
    STABLE_DIFFUSION.components,
    STABLE_DIFFUSION.sample_defaults,
    {
        "cond_stage_model.transformer.": (ModelType.STABLE_DIFFUSION_15_INPAINTING,),
        "cond_stage_model.model.": (ModelType.STABLE_DIFFUSION_20_INPAINTING,),
    },
    (
        StandardModel(
            "Stable Diffusion 1.x inpainting", "stable_diffusion/sd1", "stable-diffusion-v1-inpainting", "sd_v1",
            {ModelType.STABLE_DIFFUSION_15_INPAINTING: _FILLS},
        ),
        StandardModel(
            "Stable Diffusion 2.x inpainting", "stable_diffusion/sd2", "stable-diffusion-v2-inpainting", "sd_v2",
            {ModelType.STABLE_DIFFUSION_20_INPAINTING: _FILLS},
        ),
    ),
    ConditioningSource.MASK, _FIRST_OF_UNET, pipelines=("StableDiffusionInpaintPipeline",),
)  # fmt: skip

STABLE_DIFFUSION_XL_INPAINTING = Family(
    "StableDiffusionXLInpaintingModel",
    (ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING,),
    STABLE_DIFFUSION_XL.components,
    STABLE_DIFFUSION_XL.sample_defaults,
    {"conditioner.embedders.1.model.": (ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING,)},
    (
        StandardModel(
            "SDXL inpainting", "stable_diffusion_xl", "stable-diffusion-xl-v1-inpainting", "sdxl_base_v1-0",
            {ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING: _FILLS},
        ),
    ),
    ConditioningSource.MASK, _FIRST_OF_UNET, pipelines=("StableDiffusionXLInpaintPipeline",),
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

# as dev, but that the pipeline shows it an image; what it was trained with by diffusers' documentation
FLUX_KONTEXT = Family(
    "FluxKontextModel",
    (ModelType.FLUX_KONTEXT_DEV_1,),
    FLUX_1.components,
    {"width": 1024, "height": 1024, "diffusion_steps": 28, "cfg_scale": 2.5},
    {"img_mod.lin.": (ModelType.FLUX_KONTEXT_DEV_1,)},
    (
        StandardModel(
            "Flux.1 Kontext dev", "flux_1/dev", "flux-1-kontext-dev", "flux1", {ModelType.FLUX_KONTEXT_DEV_1: {}}
        ),
    ),
    ConditioningSource.FILE, files_like=FLUX_1.model_types, pipelines=("FluxKontextPipeline",),
)  # fmt: skip

# packed latents of noise and of what is shown, 64 channels each, and the mask's 16 × 16 pixels
FLUX_FILL = Family(
    "FluxFillModel",
    (ModelType.FLUX_FILL_DEV_1,),
    FLUX_1.components,
    {"width": 1024, "height": 1024, "diffusion_steps": 50, "cfg_scale": 30.0},
    {"img_mod.lin.": (ModelType.FLUX_FILL_DEV_1,)},
    (
        StandardModel(
            "Flux.1 Fill dev", "flux_1/dev", "flux-1-fill-dev", "flux1",
            {ModelType.FLUX_FILL_DEV_1: {"transformer": {"in_channels": 384, "out_channels": 64}}},
        ),
    ),
    ConditioningSource.MASK, ("img_in.weight", 384), pipelines=("FluxFillPipeline",),
)  # fmt: skip

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

_OTHERS_OF_QWEN = {"QwenImageEditInpaintPipeline": "fills masks", "QwenImageLayeredPipeline": "draws layers"}
QWEN = Family(
    "QwenModel",
    (ModelType.QWEN,),
    ("transformer", "text_encoder", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 50, "cfg_scale": 4.0},
    {"txt_mod.1.": (ModelType.QWEN,)},
    (StandardModel("Qwen-Image", "qwen_image", "Qwen-Image", "qwen_image", {ModelType.QWEN: {}}),),
    foreign_pipelines=_OTHERS_OF_QWEN,
)

# what published models of a kind differ in: the folder's pipeline, and an option of the transformer
_EDIT_PLUS: Changes = {"index": {"_class_name": "QwenImageEditPlusPipeline"}}
QWEN_EDIT = Family(
    "QwenEditModel",
    (ModelType.QWEN_EDIT,),
    QWEN.components,
    QWEN.sample_defaults,
    {"txt_mod.1.": (ModelType.QWEN_EDIT,)},
    tuple(
        StandardModel(
            f"Qwen-Image-Edit{name}", "qwen_image/edit", "Qwen-Image-Edit", "qwen_image_edit",
            {ModelType.QWEN_EDIT: changes}, mark,
        )
        for name, mark, changes in (
            ("", "edit", {}),
            ("-2509", "2509", _EDIT_PLUS),
            ("-2511", "2511", {**_EDIT_PLUS, "transformer": {"zero_cond_t": True}}),
        )
    ),
    ConditioningSource.FILE, files_like=QWEN.model_types, foreign_pipelines=_OTHERS_OF_QWEN,
    pipelines=("QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
)  # fmt: skip

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

ANIMA = Family(
    "AnimaModel",
    (ModelType.ANIMA,),
    ("transformer", "text_encoder", "text_conditioner", "vae"),
    {"width": 1024, "height": 1024, "diffusion_steps": 50, "cfg_scale": 4.0},
    {"llm_adapter.blocks.": (ModelType.ANIMA,)},
    (StandardModel("Anima", "anima", "Anima", "anima", {ModelType.ANIMA: {}}),),
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

IDEOGRAM = Family(
    "IdeogramModel",
    (ModelType.IDEOGRAM_4,),
    ("transformer", "text_encoder", "unconditional_transformer", "vae"),
    # fewer steps and less guidance than diffusers' 48 and 7, as OneTrainer draws them: each step is two transformers
    {"width": 1024, "height": 1024, "diffusion_steps": 25, "cfg_scale": 3.0},
    {"embed_image_indicator.": (ModelType.IDEOGRAM_4,)},
    (StandardModel("Ideogram 4", "ideogram_4", "Ideogram", "ideogram_4", {ModelType.IDEOGRAM_4: {}}),),
)

# a new family is one line here
FAMILIES: tuple[Family, ...] = (
    *(STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3),
    *(FLUX_1, FLUX_2, Z_IMAGE, CHROMA, QWEN, ERNIE, KREA_2, HI_DREAM, SANA, PIXART, ANIMA, IDEOGRAM),
    # behind those of which they are a kind
    *(STABLE_DIFFUSION_INPAINTING, STABLE_DIFFUSION_XL_INPAINTING, FLUX_KONTEXT, FLUX_FILL, QWEN_EDIT),
)


def facts_of(model_type: ModelType) -> Family | None:
    """The facts of the family that serves a type; None if there is none."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def marked_types(shapes: Mapping[str, Sequence[int]]) -> tuple[ModelType, ...]:
    """The types of single files with tensors of these names and shapes; several where only the user knows which, () if
    unknown."""
    # what has fewer marks would fit the files of families with more
    for family in sorted(FAMILIES, key=lambda family: family.first_weight is None):
        if not _reads_as(family, shapes):
            continue
        for mark, types in family.file_marks.items():
            if any(mark in name for name in shapes):
                return types
    return ()


def _reads_as(family: Family, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the denoiser's first weight has as many inputs as the family's, where that tells it from others."""
    if family.first_weight is None:
        return True
    ending, inputs = family.first_weight
    return any(name.endswith(ending) and [*shape[1:2]] == [inputs] for name, shape in shapes.items())


def standard_models_of(model_type: ModelType) -> list[StandardModel]:
    """The models of `resources/` that describe a type."""
    family = facts_of(model_type)
    return [model for model in family.standard_models if model_type in model.types] if family else []


def piped_family(index: Mapping[str, Any]) -> Family | None:
    """The family that the pipeline of a folder's index tells; None if that of its components tells it."""
    return next((family for family in FAMILIES if index.get("_class_name") in family.pipelines), None)
