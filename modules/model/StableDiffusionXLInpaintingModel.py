"""Stable Diffusion XL for inpainting."""

from modules.model.families import STABLE_DIFFUSION_XL_INPAINTING
from modules.model.InpaintingUNet import InpaintingUNet
from modules.model.StableDiffusionXLModel import StableDiffusionXLModel
from modules.util.enum.ModelType import ModelType

from diffusers import SchedulerMixin, StableDiffusionXLInpaintPipeline


class StableDiffusionXLInpaintingModel(InpaintingUNet, StableDiffusionXLModel):
    """Beside its UNet it is `StableDiffusionXLModel`."""

    model_types = STABLE_DIFFUSION_XL_INPAINTING.model_types
    file_names = {
        ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING: ("stable-diffusion-xl-v1-inpainting", "sdxl_base_v1-0")
    }
    pipeline_class = StableDiffusionXLInpaintPipeline

    def make_pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionXLInpaintPipeline:
        return StableDiffusionXLInpaintPipeline(
            vae=self.vae, unet=self.unet, scheduler=scheduler, text_encoder=None, text_encoder_2=None, tokenizer=None,
            tokenizer_2=None, add_watermarker=False,
        )  # fmt: skip
