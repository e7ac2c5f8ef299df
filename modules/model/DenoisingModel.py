from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from modules.model.Draw import Draw, per_image
from modules.model.Prediction import Prediction
from modules.util.to_device import to_device

import torch
from torch import Tensor


class TrainingBatch(Protocol):
    """What a step sees; see `modules.dataLoader.Batch`."""

    latents: Tensor
    text: dict[str, Tensor] | None
    captions: list[str]
    placement: Tensor
    conditioning: dict[str, Tensor] | None
    others: list[str]


class DenoisingModel(ABC):
    """How a training step asks a model: draw, noised input, the denoiser's answer, and its target.

    Attributes:
        device: where the denoiser works.
        velocity: whether it predicts the velocity of a schedule with a noise level for each step.
    """

    device: torch.device
    velocity: bool = False

    @abstractmethod
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """The denoiser's conditions of each caption; with gradient where a text encoder is trained.

        Float32, or the text encoder's own format where they are large.
        """

    @abstractmethod
    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draw:
        """Draws timesteps and noise from `generator` (on the CPU, so that devices agree).

        Args:
            shape: of the latents, `[b, ...]`.
            generator: of this batch.

        Returns:
            `noise`, `mixed`, `signal` and `spread` on the model's device, the rest on the CPU.
        """

    def clean_latents(self, latents: Tensor) -> Tensor:
        """Latents of `encode_images` on the device, as noise is mixed into them."""
        return to_device(latents, self.device)

    def noised(self, clean: Tensor, draw: Draw) -> Tensor:
        """The denoiser's input x_t = signal · x + spread · mixed.

        Args:
            clean: of `clean_latents`.
            draw: of these images.
        """
        return per_image(draw.signal, clean) * clean + per_image(draw.spread, clean) * draw.mixed

    @abstractmethod
    def denoise(self, noised: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """The denoiser's output for a noised input, in its shape.

        Args:
            noised: of `noised`.
            conditions: see `predict_drawn`.
            draw: of these images.
        """

    @abstractmethod
    def target(self, clean: Tensor, draw: Draw) -> Tensor:
        """What the denoiser should say of the noised input: its noise, velocity or flow."""

    def predict_drawn(self, latents: Tensor, conditions: Mapping[str, Tensor], draw: Draw) -> Prediction:
        """Runs the denoiser on latents that are noised as `draw` says.

        Args:
            latents: of `encode_images`.
            conditions: see `conditions_of`.
            draw: of these images.
        """
        clean = self.clean_latents(latents)
        noised, target = self.noised(clean, draw), self.target(clean, draw)
        predicted = self.denoise(noised, conditions, draw)
        return Prediction(predicted, target, draw.timesteps, draw.snr, self.velocity, draw.sigma)

    def predict(self, latents: Tensor, conditions: Mapping[str, Tensor], generator: torch.Generator) -> Prediction:
        """`predict_drawn` with a fresh `draw` from `generator`."""
        return self.predict_drawn(latents, conditions, self.draw(latents.shape, generator))

    def conditions_of(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The denoiser's conditions on the device, each `[b, ...]` by its name.

        They are of captions, of conditioning images if the family takes any, and `placement` `[b, 6]` of `Batch`.
        Captions that are not encoded are encoded now.

        Raises:
            ValueError: the family gives captions and conditionings the same names.
        """
        text = batch.text if batch.text is not None else self._encode_now(batch)
        shown = batch.conditioning or {}
        if shared := text.keys() & shown.keys():
            raise ValueError(f"{type(self).__name__} gives captions and conditionings the same names: {shared}")
        conditions = {**text, **shown, "placement": batch.placement}
        return {name: to_device(value, self.device) for name, value in conditions.items()}

    def _encode_now(self, batch: TrainingBatch) -> dict[str, Tensor]:
        encoded = self.encode_captions([*batch.captions, *batch.others])
        # the others are read for their length alone
        return {name: value[: len(batch.captions)] for name, value in encoded.items()} if batch.others else encoded

    def predict_batch(self, batch: TrainingBatch, generator: torch.Generator) -> Prediction:
        """`predict` for a batch of the data room, wherever it lies."""
        return self.predict(batch.latents, self.conditions_of(batch), generator)
