"""Stable Diffusion 1.5 and 2.0 for inpainting."""

from modules.model.families import STABLE_DIFFUSION_INPAINTING
from modules.model.InpaintingUNet import InpaintingUNet
from modules.model.StableDiffusionModel import StableDiffusionModel
from modules.util.enum.ModelType import ModelType

from diffusers import SchedulerMixin, StableDiffusionInpaintPipeline


class StableDiffusionInpaintingModel(InpaintingUNet, StableDiffusionModel):
    """Beside its UNet it is `StableDiffusionModel`."""

    model_types = STABLE_DIFFUSION_INPAINTING.model_types
    file_names = {
        ModelType.STABLE_DIFFUSION_15_INPAINTING: ("stable-diffusion-v1-inpainting", "sd_v1"),
        ModelType.STABLE_DIFFUSION_20_INPAINTING: ("stable-diffusion-v2-inpainting", "sd_v2"),
    }
    pipeline_class = StableDiffusionInpaintPipeline

    def make_pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionInpaintPipeline:
        return StableDiffusionInpaintPipeline(
            vae=self.vae, unet=self.unet, scheduler=scheduler, text_encoder=None, tokenizer=None, safety_checker=None,
            feature_extractor=None, image_encoder=None, requires_safety_checker=False,
        )  # fmt: skip
