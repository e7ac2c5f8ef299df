from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from modules.model.DenoisingModel import DenoisingModel
from modules.model.sample_pictures import read_pictures
from modules.util.config.conditioning import sample_conditioning_problem
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.UserError import UserError

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from diffusers import DiffusionPipeline

Pictures = Callable[[SampleConfig, ConditioningSource, tuple[int, int], bool], tuple[Tensor, Tensor | None]]


class ConditionedModel(DenoisingModel):
    """An image beside the target on which the denoiser is conditioned: to fill a mask, to edit, to follow an outline.

    A family says where it comes from (`conditioning`), may say how it is encoded (`encode_conditioning`), and says what
    its pipeline is told of it (`pipeline_conditioning`), unless it fills masks with a UNet. What `encode_conditioning`
    gives reaches `denoise` among the conditions, under the same names. There it is joined to the noised latents as
    channels, appended as tokens, or used in any other way; nothing between asks for its shapes.

    Attributes:
        config: of the run.
        pictures: reads what samples start from; see `read_pictures`.
    """

    conditioning: ClassVar[ConditioningSource] = ConditioningSource.NONE
    # whether `encode_instructions` takes the place of `encode_captions`; text encoders of such families aren't trained
    captions_see_conditioning: ClassVar[bool] = False

    config: TrainConfig
    pictures: Pictures = staticmethod(read_pictures)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        lacks = cls.pipeline_conditioning is ConditionedModel.pipeline_conditioning
        if cls.conditioning == ConditioningSource.FILE and lacks:
            raise TypeError(f"{cls.__name__} takes conditioning images from files, so it needs a pipeline_conditioning")

    @property
    @abstractmethod
    def image_grid(self) -> int:
        """Pixels; the sides of training images are multiples of it."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b, 3, h, w]` in [-1, 1] -> latents `[b, c, h', w']` as `predict` takes them, float32, without gradient."""

    @abstractmethod
    def image_fingerprint(self) -> str:
        """Hash of everything that `encode_images` depends on."""

    def encode_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """What `denoise` needs of conditioning images, without gradient. Images of one size give tensors of one shape.

        Here: `conditioning_latents` of `encode_images`, and `conditioning_mask`, the mask averaged over each latent.

        Args:
            pixels: `[b, 3, h, w]` in [-1, 1]; of families that fill masks grey (0) where the mask is white, unless the
                image comes from a file of its own.
            mask: `[b, 1, h, w]` in [0, 1], 1 where the image is to be filled; None if `conditioning` is not MASK.

        Returns:
            name -> `[b, ...]`; no name of `encode_captions`.
        """
        latents = self.encode_images(pixels)
        if mask is None:
            return {"conditioning_latents": latents}
        small = adaptive_avg_pool2d(mask.to(latents.device), latents.shape[-2:])
        return {"conditioning_latents": latents, "conditioning_mask": small}

    def conditioning_fingerprint(self) -> str:
        """Hash of everything that `encode_conditioning` depends on."""
        return self.image_fingerprint()

    def encode_instructions(self, captions: list[str], pixels: Tensor) -> dict[str, Tensor]:
        """`encode_captions` where a text encoder sees the conditioning image, too, `[b, 3, h, w]` in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__} sets captions_see_conditioning, but encodes no instructions")

    def sample_size(self, sample: SampleConfig) -> tuple[int, int]:
        """(height, width) in which a sample is drawn, in pixels: what it asks for, on the model's grid."""
        grid = self.image_grid
        return max(grid, sample.height // grid * grid), max(grid, sample.width // grid * grid)

    def sample_pictures(self, sample: SampleConfig) -> tuple[Tensor, Tensor | None]:
        """What a sample starts from, see `read_pictures`; UserError if a file is missing or broken."""
        custom = self.config.custom_conditioning_image
        return self.pictures(sample, self.conditioning, self.sample_size(sample), custom)

    def sample_conditioning(self, sample: SampleConfig) -> dict[str, Any]:
        """What the pipeline is told of a sample's conditioning; nothing in families that take none.

        Raises:
            UserError: the sample asks for what the family can't do, or a picture is missing or broken.
        """
        if self.conditioning == ConditioningSource.NONE:
            if problem := sample_conditioning_problem(self.config, sample, self.conditioning):
                raise UserError(f"{problem}.")
            return {}
        # encoded in the VAE's own precision, as for training: under a run's autocast to float16 it could overflow
        with torch.autocast(self.device.type, enabled=False):
            return self.pipeline_conditioning(*self.sample_pictures(sample))

    def pipeline_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """Arguments of the family's pipeline; they take the place of others of the same name.

        Latents rather than pixels: a pipeline would encode in the denoiser's number format, which the VAE may not have,
        under the run's autocast, and from a draw of the VAE's posterior.

        Here, for masks: what diffusers' inpainting pipelines of UNets take. `mask_image` has one value for each latent,
        as `encode_conditioning` averages it. The pixels of `image` are not encoded. Families that edit images must say
        it themselves, since each pipeline wants the latents in another form.

        Args:
            pixels: `[1, 3, h, w]` in [-1, 1], as in `encode_conditioning`.
            mask: `[1, 1, h, w]` in [0, 1]; None if `conditioning` is not MASK.
        """
        if mask is None:
            raise NotImplementedError(f"{type(self).__name__} has no pipeline_conditioning")
        latents = self.clean_latents(self.encode_images(pixels))
        small = adaptive_avg_pool2d(mask, latents.shape[-2:])
        # the pipeline takes the nearest value of each latent, so that these are the averages again
        mask = interpolate(small, size=mask.shape[-2:], mode="nearest-exact")
        return {"image": pixels / 2 + 0.5, "mask_image": mask, "masked_image_latents": latents}

    def keep_masks_soft(self, pipeline: DiffusionPipeline) -> None:
        """Lets an inpainting pipeline take a mask's values as they are; diffusers' would make each of them 0 or 1."""
        processor = getattr(pipeline, "mask_processor", None)
        if self.conditioning == ConditioningSource.MASK and processor is not None:
            processor.register_to_config(do_binarize=False)
