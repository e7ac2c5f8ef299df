from collections.abc import Mapping
from typing import Protocol

from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.DataType import DataType
from modules.util.UserError import UserError

import torch
from torch import Tensor


class EncodingModel(Protocol):
    """What the data room needs of a model.

    Attributes:
        image_grid: sides of training images are multiples of it, in pixels.
        conditioning: where conditioning images come from.
        captions_see_conditioning: whether captions are encoded together with them.
    """

    image_grid: int
    conditioning: ConditioningSource
    captions_see_conditioning: bool

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[b, 3, h, w] in [-1, 1] -> latents [b, c, h/f, w/f], posterior mean, not scaled."""

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """b captions -> name -> [b, ...]."""

    def encode_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """[b, 3, h, w] in [-1, 1] and maybe [b, 1, h, w] in [0, 1] -> name -> [b, ...]."""

    def encode_instructions(self, captions: list[str], pixels: Tensor) -> dict[str, Tensor]:
        """b captions and conditioning images [b, 3, h, w] -> name -> [b, ...]."""

    def conditioning_fingerprint(self) -> str:
        """Hash of all that `encode_conditioning` depends on."""

    def image_fingerprint(self) -> str:
        """Hash of all that `encode_images` depends on."""

    def text_fingerprint(self) -> str:
        """Hash of all that `encode_captions` depends on."""

    def rest(self) -> None:
        """Puts away what only encoding needs, until it is asked for again."""


class Encoder:
    """Encodes one image, caption or conditioning at a time.

    One at a time on purpose: in larger batches the last bits depend on which others are in the batch, so that a cache
    that was interrupted and completed would differ from one that was built in one go, and runs with it.

    Args:
        model: encodes.
        text_format: of encoded captions; see `reduced`.
    """

    def __init__(self, model: EncodingModel, text_format: DataType = DataType.NONE) -> None:
        self._model, self._text_format = model, text_format

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
    def conditioning(self, pixels: Tensor, mask: Tensor | None, name: str) -> dict[str, Tensor]:
        """A conditioning image [3, h, w] in [-1, 1] and maybe a mask [1, h, w] -> name -> [...], on the CPU.

        Raises:
            UserError: if a value is not finite.
        """
        encoded = self._model.encode_conditioning(pixels[None], None if mask is None else mask[None])
        tensors = {key: tensor[0].detach().to("cpu").clone() for key, tensor in encoded.items()}
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"{name}: its conditioning is encoded to values that are not finite ({key}); set vae.weight_dtype "
                    "to FLOAT_32, or check the model's weights"
                )
        return tensors

    @torch.no_grad()
    def caption(self, caption: str, pixels: Tensor | None = None) -> dict[str, Tensor]:
        """A caption -> name -> [...], on the CPU.

        Args:
            caption: the text.
            pixels: [3, h, w], the conditioning image that is read together with it; None: it is read alone.

        Raises:
            UserError: if a value is not finite.
        """
        if pixels is None:
            encoded = self._model.encode_captions([caption])
        else:
            encoded = self._model.encode_instructions([caption], pixels[None])
        tensors = {name: tensor[0].detach().to("cpu").clone() for name, tensor in encoded.items()}
        for name, tensor in tensors.items():
            # -inf is a legal entry of an additive mask
            if tensor.is_floating_point() and torch.isnan(tensor).any():
                raise UserError(
                    f"the text encoder encodes the caption {caption!r} to values that are not numbers ({name}); "
                    "set text_encoder.weight_dtype to FLOAT_32, or check the model's weights"
                )
        stored = reduced(tensors, self._text_format)
        for name, tensor in stored.items():
            if tensor.dtype == torch.float16 and not torch.equal(tensor.isinf(), tensors[name].isinf()):
                raise UserError(
                    f"text_cache_dtype: found FLOAT_16, which ends at 65504, but the caption {caption!r} is encoded to "
                    f"larger numbers ({name}); set it to BFLOAT_16 or NONE"
                )
        return stored


def reduced(tensors: Mapping[str, Tensor], text_format: DataType) -> dict[str, Tensor]:
    """Encoded captions with their floating-point numbers of 32 bits or more rounded to another format.

    Args:
        tensors: name -> [...].
        text_format: BFLOAT_16, FLOAT_16, or NONE, which leaves them as they are.
    """
    dtype = {DataType.BFLOAT_16: torch.bfloat16, DataType.FLOAT_16: torch.float16}.get(text_format)
    return {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() and tensor.itemsize > 2 else tensor
        for name, tensor in tensors.items()
    }
