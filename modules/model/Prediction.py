from dataclasses import dataclass
from typing import Self

from modules.model.Draw import of_images

from torch import Tensor


@dataclass
class Prediction:
    """What the model said and what it should have said. Axes: `b` batch.

    Attributes:
        predicted: in the latents' shape, `[b, …]`.
        target: the same shape; noise, velocity or flow.
        timesteps: `[b]`, integer steps of the family's schedule; in continuous time 1000 times `sigma`.
        snr: `[b]` signal-to-noise ratio of the noised latents, for loss weights; None where it has no meaning.
        velocity: whether the target is a velocity, which changes the SNR weights.
        sigma: `[b]` share of noise in 0 … 1 of families with flow matching, for loss weights; None elsewhere.
    """

    predicted: Tensor
    target: Tensor
    timesteps: Tensor
    snr: Tensor | None = None
    velocity: bool = False
    sigma: Tensor | None = None

    def of(self, images: list[int]) -> Self:
        """The prediction for some images of the batch, by their places in it."""
        return of_images(self, images)
