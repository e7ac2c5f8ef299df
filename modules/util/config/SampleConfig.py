from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.SAMPLE


class SampleConfig(BaseConfig):
    """One image that is drawn during training to watch its progress."""

    enabled: bool = option(True, "Enabled", "Draws this sample; otherwise it is skipped.", G)
    prompt: str = option("", "Prompt", "What to draw.", G)
    negative_prompt: str = option("", "Negative prompt", "What guidance steers away from.", G)
    height: int = option(
        512, "Height", "Height of the image; the model's grid rounds it.", G, ge=8, le=16384, unit="pixels"
    )
    width: int = option(
        512, "Width", "Width of the image; the model's grid rounds it.", G, ge=8, le=16384, unit="pixels"
    )
    frames: int = option(
        1, "Frames", "Frames of a video model's sample.", G, ge=1, le=10000, unit="frames", advanced=True
    )
    length: float = option(10.0, "Length", "Length of an audio model's sample.", G, gt=0, unit="seconds", advanced=True)
    seed: int = option(42, "Seed", "The noise to start from. The same seed makes samples comparable.", G)
    random_seed: bool = option(
        False, "Random seed", "Starts from other noise each time. Samples are then not comparable.", G
    )
    diffusion_steps: int = option(
        30, "Steps", "Steps of the sampler. More is finer and slower.", G, ge=1, le=1000, unit="steps"
    )
    cfg_scale: float = option(7.0, "Guidance", "Strength of classifier-free guidance; 1 switches it off.", G, ge=0)
    noise_scheduler: NoiseScheduler = option(
        NoiseScheduler.DDIM, "Sampler", "How noise becomes an image. Flow-matching models use their own.", G
    )
    text_encoder_1_layer_skip: int = option(
        0, "Layer skip 1", "Last layers of text encoder 1 that are left out.", G, ge=0, unit="layers", advanced=True
    )
    text_encoder_1_sequence_length: int | None = option(
        None,
        "Sequence length 1",
        "Tokens that text encoder 1 reads. null: the model's own.",
        G,
        ge=1,
        le=4096,
        unit="tokens",
        advanced=True,
    )
    text_encoder_2_layer_skip: int = option(
        0, "Layer skip 2", "Last layers of text encoder 2 that are left out.", G, ge=0, unit="layers", advanced=True
    )
    text_encoder_2_sequence_length: int | None = option(
        None,
        "Sequence length 2",
        "Tokens that text encoder 2 reads. null: the model's own.",
        G,
        ge=1,
        le=4096,
        unit="tokens",
        advanced=True,
    )
    text_encoder_3_layer_skip: int = option(
        0, "Layer skip 3", "Last layers of text encoder 3 that are left out.", G, ge=0, unit="layers", advanced=True
    )
    text_encoder_4_layer_skip: int = option(
        0, "Layer skip 4", "Last layers of text encoder 4 that are left out.", G, ge=0, unit="layers", advanced=True
    )
    transformer_attention_mask: bool = option(
        False, "Attention mask", "Hides padding tokens from the transformer.", G, advanced=True
    )
    force_last_timestep: bool = option(
        False,
        "Force last timestep",
        "Starts at the noisiest timestep. Needed by models with zero terminal SNR.",
        G,
        advanced=True,
    )
    sample_inpainting: bool = option(
        False,
        "Inpainting",
        "Fills the masked area of a base image instead of drawing a whole one. Only inpainting families can.",
        G,
        advanced=True,
    )
    base_image_path: str = option(
        "",
        "Base image",
        "The image to fill in, or from which editing families draw.",
        G,
        path="file",
        advanced=True,
    )
    mask_image_path: str = option(
        "",
        "Mask image",
        "White where the base image is to be filled in.",
        G,
        path="file",
        visible_when={"sample_inpainting": (True,)},
        advanced=True,
    )
