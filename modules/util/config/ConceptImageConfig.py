from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.resolution import check_resolution
from modules.util.enum.OptionGroup import OptionGroup

from pydantic import field_validator

G = OptionGroup.IMAGE
basic = partial(option, group=G)
advanced = partial(option, group=G, advanced=True)
relative_change = partial(basic, 0.0, help="Largest relative change; 0.1 is ten percent.", ge=-1, le=10)


class ConceptImageConfig(BaseConfig):
    """How the images of a concept are varied before they are encoded."""

    enable_crop_jitter: bool = basic(
        True, "Crop jitter", "Moves the crop at random where an image is larger than its bucket."
    )
    enable_random_flip: bool = basic(
        False, "Random flip", "Mirrors half of the images left to right. Not for text or asymmetric subjects."
    )
    enable_fixed_flip: bool = advanced(False, "Fixed flip", "Mirrors every image left to right.")
    enable_random_rotate: bool = basic(
        False, "Random rotation", "Turns each image by a random angle up to the maximum, either way."
    )
    enable_fixed_rotate: bool = advanced(False, "Fixed rotation", "Turns every image by exactly the maximum angle.")
    random_rotate_max_angle: float = basic(
        0.0, "Maximum angle", "Largest angle of a rotation.", ge=-180, le=180, unit="degrees"
    )
    enable_random_brightness: bool = basic(
        False, "Random brightness", "Changes brightness by a random amount up to the maximum."
    )
    enable_fixed_brightness: bool = advanced(False, "Fixed brightness", "Changes brightness by exactly the maximum.")
    random_brightness_max_strength: float = relative_change("Maximum brightness change")
    enable_random_contrast: bool = basic(
        False, "Random contrast", "Changes contrast by a random amount up to the maximum."
    )
    enable_fixed_contrast: bool = advanced(False, "Fixed contrast", "Changes contrast by exactly the maximum.")
    random_contrast_max_strength: float = relative_change("Maximum contrast change")
    enable_random_saturation: bool = basic(
        False, "Random saturation", "Changes saturation by a random amount up to the maximum."
    )
    enable_fixed_saturation: bool = advanced(False, "Fixed saturation", "Changes saturation by exactly the maximum.")
    random_saturation_max_strength: float = relative_change("Maximum saturation change")
    enable_random_hue: bool = basic(False, "Random hue", "Shifts the hue by a random amount up to the maximum.")
    enable_fixed_hue: bool = advanced(False, "Fixed hue", "Shifts the hue by exactly the maximum.")
    random_hue_max_strength: float = basic(
        0.0, "Maximum hue shift", "Largest shift; 1 is half of the colour circle.", ge=-1, le=1
    )
    enable_resolution_override: bool = advanced(
        False, "Own resolution", "Gives this concept its own training resolution."
    )
    resolution_override: str = advanced(
        "512",
        "Resolution",
        "The concept's own training resolution, written as the run's `resolution`.",
        unit="pixels",
        visible_when={"enable_resolution_override": (True,)},
    )
    enable_random_circular_mask_shrink: bool = advanced(
        False, "Random circular mask", "Shrinks the mask to a random circle, for masked training."
    )
    enable_random_mask_rotate_crop: bool = advanced(
        False, "Random crop around the mask", "Turns the image and crops it around its mask, for masked training."
    )

    _check_resolution = field_validator("resolution_override", mode="before")(check_resolution)
