from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.text_encoder_options import layer_skip, sequence_length
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.SAMPLE
basic = partial(option, group=G)
advanced = partial(option, group=G, advanced=True)


class SampleConfig(BaseConfig):
    """One image that is drawn during training to watch its progress."""

    enabled: bool = basic(True, "Enabled", "Draws this sample; otherwise it is skipped.")
    prompt: str = basic("", "Prompt", "What to draw.")
    negative_prompt: str = basic("", "Negative prompt", "What guidance steers away from.")
    height: int = basic(
        512, "Height", "Height of the image; the model's grid rounds it.", ge=8, le=16384, unit="pixels"
    )
    width: int = basic(512, "Width", "Width of the image; the model's grid rounds it.", ge=8, le=16384, unit="pixels")
    frames: int = advanced(1, "Frames", "Frames of a video model's sample.", ge=1, le=10000, unit="frames")
    length: float = advanced(10.0, "Length", "Length of an audio model's sample.", gt=0, unit="seconds")
    seed: int = basic(42, "Seed", "The noise to start from. The same seed makes samples comparable.")
    random_seed: bool = basic(
        False, "Random seed", "Starts from other noise each time. Samples are then not comparable."
    )
    diffusion_steps: int = basic(
        30, "Steps", "Steps of the sampler. More is finer and slower.", ge=1, le=1000, unit="steps"
    )
    cfg_scale: float = basic(7.0, "Guidance", "Strength of classifier-free guidance; 1 switches it off.", ge=0)
    noise_scheduler: NoiseScheduler = basic(
        NoiseScheduler.DDIM, "Sampler", "How noise becomes an image. Flow-matching models use their own."
    )
    text_encoder_1_layer_skip: int = layer_skip(1, G)
    text_encoder_1_sequence_length: int | None = sequence_length(
        None, "Sequence length 1", "Tokens that text encoder 1 reads. null: the model's own.", G
    )
    text_encoder_2_layer_skip: int = layer_skip(2, G)
    text_encoder_2_sequence_length: int | None = sequence_length(
        None, "Sequence length 2", "Tokens that text encoder 2 reads. null: the model's own.", G
    )
    text_encoder_3_layer_skip: int = layer_skip(3, G)
    text_encoder_3_sequence_length: int | None = sequence_length(
        None, "Sequence length 3", "Tokens that text encoder 3 reads. null: the model's own.", G
    )
    text_encoder_4_layer_skip: int = layer_skip(4, G)
    transformer_attention_mask: bool = advanced(False, "Attention mask", "Hides padding tokens from the transformer.")
    force_last_timestep: bool = advanced(
        False, "Force last timestep", "Starts at the noisiest timestep. Needed by models with zero terminal SNR."
    )
    sample_inpainting: bool = advanced(
        False,
        "Inpainting",
        "Fills the masked area of a base image instead of drawing a whole one. Only inpainting families can.",
    )
    base_image_path: str = advanced(
        "", "Base image", "The image to fill in, or from which editing families draw.", path="file"
    )
    mask_image_path: str = advanced(
        "",
        "Mask image",
        "White where the base image is to be filled in.",
        path="file",
        visible_when={"sample_inpainting": (True,)},
    )
