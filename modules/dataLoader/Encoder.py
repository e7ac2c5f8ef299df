from typing import Protocol

from modules.util.UserError import UserError

import torch
from torch import Tensor


class EncodingModel(Protocol):
    """What the data room needs of a model.

    Attributes:
        image_grid: sides of training images are multiples of it, in pixels.
    """

    image_grid: int

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[b, 3, h, w] in [-1, 1] -> latents [b, c, h/f, w/f], posterior mean, not scaled."""

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """b captions -> name -> [b, ...]."""

    def image_fingerprint(self) -> str:
        """Hash of all that `encode_images` depends on."""

    def text_fingerprint(self) -> str:
        """Hash of all that `encode_captions` depends on."""


class Encoder:
    """Encodes one image or caption at a time.

    One at a time on purpose: in larger batches the last bits depend on which others are in the batch, so that a cache
    that was interrupted and completed would differ from one that was built in one go, and runs with it.
    """

    def __init__(self, model: EncodingModel) -> None:
        self._model = model

    @torch.no_grad()
    def image(self, pixels: Tensor, name: str) -> Tensor:
        """Pixels [3, h, w] in [-1, 1] -> latent [c, h/f, w/f], float32, on the CPU.

        Raises:
            UserError: if the latent is not finite.
        """
        latent = self._model.encode_images(pixels[None])[0].to("cpu", torch.float32).contiguous()
        if not torch.isfinite(latent).all():
            raise UserError(
                f"{name}: the VAE encodes this image to values that are not finite; "
                "set vae.weight_dtype to FLOAT_32, or check the model's weights"
            )
        return latent

    @torch.no_grad()
    def caption(self, caption: str) -> dict[str, Tensor]:
        """A caption -> name -> [...], on the CPU.

        Raises:
            UserError: if a value is not finite.
        """
        encoded = self._model.encode_captions([caption])
        tensors = {name: tensor[0].detach().to("cpu").clone() for name, tensor in encoded.items()}
        for name, tensor in tensors.items():
            # -inf is a legal entry of an additive mask
            if tensor.is_floating_point() and torch.isnan(tensor).any():
                raise UserError(
                    f"the text encoder encodes the caption {caption!r} to values that are not numbers ({name}); "
                    "set text_encoder.weight_dtype to FLOAT_32, or check the model's weights"
                )
        return tensors
