from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.resolution import check_resolution
from modules.util.enum.OptionGroup import OptionGroup

from pydantic import field_validator

G = OptionGroup.IMAGE


class ConceptImageConfig(BaseConfig):
    """How the images of a concept are varied before they are encoded."""

    enable_crop_jitter: bool = option(
        True, "Crop jitter", "Moves the crop at random where an image is larger than its bucket.", G
    )
    enable_random_flip: bool = option(
        False, "Random flip", "Mirrors half of the images left to right. Not for text or asymmetric subjects.", G
    )
    enable_fixed_flip: bool = option(False, "Fixed flip", "Mirrors every image left to right.", G, advanced=True)
    enable_random_rotate: bool = option(
        False, "Random rotation", "Turns each image by a random angle up to the maximum, either way.", G
    )
    enable_fixed_rotate: bool = option(
        False, "Fixed rotation", "Turns every image by exactly the maximum angle.", G, advanced=True
    )
    random_rotate_max_angle: float = option(
        0.0, "Maximum angle", "Largest angle of a rotation.", G, ge=-180, le=180, unit="degrees"
    )
    enable_random_brightness: bool = option(
        False, "Random brightness", "Changes brightness by a random amount up to the maximum.", G
    )
    enable_fixed_brightness: bool = option(
        False, "Fixed brightness", "Changes brightness by exactly the maximum.", G, advanced=True
    )
    random_brightness_max_strength: float = option(
        0.0, "Maximum brightness change", "Largest relative change; 0.1 is ten percent.", G, ge=-1, le=10
    )
    enable_random_contrast: bool = option(
        False, "Random contrast", "Changes contrast by a random amount up to the maximum.", G
    )
    enable_fixed_contrast: bool = option(
        False, "Fixed contrast", "Changes contrast by exactly the maximum.", G, advanced=True
    )
    random_contrast_max_strength: float = option(
        0.0, "Maximum contrast change", "Largest relative change; 0.1 is ten percent.", G, ge=-1, le=10
    )
    enable_random_saturation: bool = option(
        False, "Random saturation", "Changes saturation by a random amount up to the maximum.", G
    )
    enable_fixed_saturation: bool = option(
        False, "Fixed saturation", "Changes saturation by exactly the maximum.", G, advanced=True
    )
    random_saturation_max_strength: float = option(
        0.0, "Maximum saturation change", "Largest relative change; 0.1 is ten percent.", G, ge=-1, le=10
    )
    enable_random_hue: bool = option(False, "Random hue", "Shifts the hue by a random amount up to the maximum.", G)
    enable_fixed_hue: bool = option(False, "Fixed hue", "Shifts the hue by exactly the maximum.", G, advanced=True)
    random_hue_max_strength: float = option(
        0.0, "Maximum hue shift", "Largest shift; 1 is half of the colour circle.", G, ge=-1, le=1
    )
    enable_resolution_override: bool = option(
        False, "Own resolution", "Gives this concept its own training resolution.", G, advanced=True
    )
    resolution_override: str = option(
        "512",
        "Resolution",
        "The concept's own training resolution, written as the run's `resolution`.",
        G,
        unit="pixels",
        visible_when={"enable_resolution_override": (True,)},
        advanced=True,
    )
    enable_random_circular_mask_shrink: bool = option(
        False, "Random circular mask", "Shrinks the mask to a random circle, for masked training.", G, advanced=True
    )
    enable_random_mask_rotate_crop: bool = option(
        False,
        "Random crop around the mask",
        "Turns the image and crops it around its mask, for masked training.",
        G,
        advanced=True,
    )

    _check_resolution = field_validator("resolution_override", mode="before")(check_resolution)
