from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from torch import Tensor

Record = TypeVar("Record")


@dataclass(frozen=True)
class Draw:
    """What a training step draws by chance: the noise of each image, and how much of it is mixed in.

    The noised input is x_t = signal · x + spread · mixed. A model can be asked several times with the same draw. Axes:
    `b` batch; the latents may have any axes behind it.

    Attributes:
        timesteps: `[b]`, see `Prediction`; on the CPU.
        noise: in the latents' shape, standard normal plus offset noise; what targets are made of.
        mixed: `noise`, with perturbation noise on top where the config asks for it; what is mixed into the latents.
        signal: `[b]` share of the clean latents, in 0 … 1.
        spread: `[b]` share of the noise, in 0 … 1.
        snr: `[b]` signal-to-noise ratio, on the CPU; None where it has no meaning.
        sigma: `[b]` noise level of flow matching in 0 … 1, on the CPU; None elsewhere.
    """

    timesteps: Tensor
    noise: Tensor
    mixed: Tensor
    signal: Tensor
    spread: Tensor
    snr: Tensor | None = None
    sigma: Tensor | None = None

    def of(self, images: list[int]) -> Self:
        """The draw of some images of the batch, by their places in it."""
        return of_images(self, images)


def of_images(record: Record, images: list[int]) -> Record:
    """A dataclass with every tensor `[b, ...]` cut to some images of the batch."""
    values: dict[str, Any] = vars(record)
    return replace(record, **{name: value[images] for name, value in values.items() if isinstance(value, Tensor)})


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """`[b]` -> `[b, 1, 1, …]` with as many axes as `like` has."""
    return values.view(-1, *[1] * (like.dim() - 1))
