from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.option import option
from modules.util.config.resolution import check_resolution
from modules.util.enum.DataType import DataType
from modules.util.enum.OptionGroup import OptionGroup

from pydantic import field_validator

G = OptionGroup.DATA
MASK = OptionGroup.MASK
MASKED = {"masked_training": (True,)}
data_option = partial(option, group=G)
mask_option = partial(option, group=MASK, visible_when=MASKED)


class DataOptions(BaseConfig):
    """What is trained on, in which sizes, and masked training."""

    concept_file_name: str = data_option(
        "training_concepts/concepts.json",
        "Concept file",
        "JSON list of concepts. Used if `concepts` is null.",
        path="file",
    )
    concepts: list[ConceptConfig] | None = data_option(
        None, "Concepts", "The concepts themselves. null: those of `concept_file_name`.", advanced=True
    )
    resolution: str = data_option(
        "512",
        "Resolution",
        "Edge of a square with as many pixels as the training images get. Several, with commas "
        "between, train on all of them; 512x768 (width x height) is an exact size.",
        unit="pixels",
    )
    aspect_ratio_bucketing: bool = data_option(
        True, "Aspect ratio buckets", "Keeps each image near its own shape; otherwise all are cropped to squares."
    )
    latent_caching: bool = data_option(
        True,
        "Cache latents",
        "Encodes images and captions once and stores them. Off: encodes them again at each use, which is "
        "slower and needs no disk. Captions of a trained text encoder are never stored.",
    )
    text_cache_dtype: DataType = data_option(
        DataType.NONE,
        "Stored captions",
        "Number format of cached captions: BFLOAT_16 or FLOAT_16 take half the disk where the text encoder gives 32 "
        "bits. The trained weights stay the same if the denoiser computes in that format. NONE: as they are encoded.",
        advanced=True,
    )
    clear_cache_before_training: bool = data_option(
        True, "Clear cache", "Permits removing cached entries that no longer fit the data.", affects_result=False
    )
    dataloader_threads: int = data_option(
        2,
        "Data threads",
        "Threads that read, decode and join batches ahead of the steps, and images ahead of their encoding. More help "
        "where a run says that it waits for data.",
        ge=1,
        le=256,
        unit="threads",
        affects_result=False,
    )
    data_memory: float | None = data_option(
        None,
        "Memory for data",
        "RAM that keeps encoded images and captions; what exceeds it is read from disk at each use. null: a quarter of "
        "the RAM that is free when they are read.",
        ge=0,
        unit="GiB",
        advanced=True,
        affects_result=False,
    )
    custom_conditioning_image: bool = data_option(
        False,
        "Own conditioning images",
        "Reads a conditioning image, NAME-condlabel.png, beside each image. Editing families need it; inpainting "
        "families otherwise take the image without what its mask covers.",
        advanced=True,
    )

    masked_training: bool = option(
        False, "Masked training", "Learns mainly from the white area of a mask file beside each image.", MASK
    )
    unmasked_probability: float = mask_option(
        0.1, "Unmasked steps", "Share of steps that ignore the mask and learn from the whole image.", ge=0, le=1
    )
    unmasked_weight: float = mask_option(
        0.1, "Unmasked weight", "Weight of the loss outside the mask, in masked steps.", ge=0, le=1
    )
    normalize_masked_area_loss: bool = mask_option(
        False,
        "Normalise by area",
        "Divides the loss by the mask's area, so that small masks count as much as large ones.",
    )
    masked_prior_preservation_weight: float = mask_option(
        0.0,
        "Prior preservation",
        "Weight of keeping the base model's prediction outside the mask. Needs an adapter that can be switched off.",
        ge=0,
        advanced=True,
    )

    _check_resolution = field_validator("resolution", mode="before")(check_resolution)
