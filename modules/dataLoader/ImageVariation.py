from dataclasses import dataclass
from typing import Self

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.resolution import Resolution
from modules.util.keyed_random import keyed_random

SMALLEST_CIRCLE = 0.2
"""Smallest radius of a random mask circle, as a share of the largest distance in the mask."""


@dataclass(frozen=True)
class ImageVariation:
    """What is done to an image before it is encoded, drawn once for each variation.

    Attributes:
        resolution: the one of the run's (or concept's) resolutions that is used.
        crop: (x, y) place of the crop, from 0 (left, top) to 1; 0.5 is the centre.
        flip: mirrored left to right.
        angle: degrees, counter-clockwise.
        brightness, contrast, saturation: factors >= 0; 1 changes nothing.
        hue: shift as a share of the colour circle, -0.5 to 0.5.
        mask_circle: (seed, share of the largest radius) of the random circle that the mask is cut to, or None.
    """

    resolution: Resolution
    crop: tuple[float, float] = (0.5, 0.5)
    flip: bool = False
    angle: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    mask_circle: tuple[int, float] | None = None

    @classmethod
    def draw(cls, concept: ConceptConfig, name: str, variation: int, resolutions: tuple[Resolution, ...]) -> Self:
        """Draws variation number `variation` of an image.

        Each property has random numbers of its own, keyed by the concept's seed, the image's name and the number:
        switching one on leaves the others as they were. Where an option is both random and fixed, random wins.
        """
        image = concept.image

        def rng(purpose: str):
            return keyed_random("image", purpose, concept.seed, name, variation)

        def change(purpose: str, strength: float) -> float:
            if getattr(image, f"enable_random_{purpose}"):
                return rng(purpose).uniform(-abs(strength), abs(strength))
            return strength if getattr(image, f"enable_fixed_{purpose}") else 0.0

        jitter = rng("crop") if image.enable_crop_jitter else None
        circle = rng("circle") if image.enable_random_circular_mask_shrink else None
        flip = rng("flip").random() < 0.5 if image.enable_random_flip else image.enable_fixed_flip
        return cls(
            resolution=draw_resolution(concept, name, variation, resolutions),
            crop=(jitter.random(), jitter.random()) if jitter else (0.5, 0.5),
            flip=flip,
            angle=change("rotate", image.random_rotate_max_angle),
            brightness=max(0.0, 1 + change("brightness", image.random_brightness_max_strength)),
            contrast=max(0.0, 1 + change("contrast", image.random_contrast_max_strength)),
            saturation=max(0.0, 1 + change("saturation", image.random_saturation_max_strength)),
            # as in OneTrainer, strength 1 is half of the circle
            hue=change("hue", image.random_hue_max_strength) / 2,
            mask_circle=(circle.getrandbits(32), circle.uniform(SMALLEST_CIRCLE, 1.0)) if circle else None,
        )


def draw_resolution(
    concept: ConceptConfig, name: str, variation: int, resolutions: tuple[Resolution, ...]
) -> Resolution:
    """The resolution of one variation alone, as `ImageVariation.draw` draws it: plans ask for nothing else."""
    if len(resolutions) == 1:
        return resolutions[0]
    return keyed_random(*resolution_key(concept, name), variation).choice(resolutions)


def resolution_key(concept: ConceptConfig, name: str) -> tuple[str | int, ...]:
    """By what the resolutions of an image's variations are drawn, beside the variation's number."""
    return "image", "resolution", concept.seed, name
