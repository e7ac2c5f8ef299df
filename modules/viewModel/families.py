"""What a form must know of each model family, without loading the model room and torch."""

from typing import Any

from modules.util.enum.ModelType import ModelType

SUPPORTED = frozenset(
    {
        ModelType.STABLE_DIFFUSION_15,
        ModelType.STABLE_DIFFUSION_20,
        ModelType.STABLE_DIFFUSION_20_BASE,
        ModelType.STABLE_DIFFUSION_21,
        ModelType.STABLE_DIFFUSION_21_BASE,
        ModelType.STABLE_DIFFUSION_XL_10_BASE,
        ModelType.FLUX_2,
    }
)
"""Families that the model room can train; a test compares."""

_PARTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_20", "STABLE_DIFFUSION_21"): ("unet", "text_encoder", "vae"),
    ("STABLE_DIFFUSION_XL",): ("unet", "text_encoder", "text_encoder_2", "vae"),
    ("STABLE_DIFFUSION_3",): ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"),
    ("PIXART", "FLUX_2", "SANA", "CHROMA", "QWEN", "Z_IMAGE"): ("transformer", "text_encoder", "vae"),
    ("FLUX_DEV_1", "FLUX_FILL", "HUNYUAN_VIDEO"): ("transformer", "text_encoder", "text_encoder_2", "vae"),
    ("HI_DREAM",): ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "vae"),
    ("WUERSTCHEN", "STABLE_CASCADE"): (
        *("prior", "text_encoder", "effnet_encoder"),
        *("decoder", "decoder_text_encoder", "decoder_vqgan"),
    ),
}  # fmt: skip

_SAMPLES: dict[tuple[str, ...], dict[str, Any]] = {
    ("STABLE_DIFFUSION_XL",): {"width": 1024, "height": 1024},
    ("FLUX_2",): {"width": 1024, "height": 1024, "cfg_scale": 4.0},
}


def sample_defaults_of(model_type: ModelType) -> dict[str, Any]:
    """What a sample in a file is drawn with, in keys that it does not mention; a test compares with the model room."""
    return next((dict(values) for start, values in _SAMPLES.items() if model_type.value.startswith(start)), {})


def parts_of(model_type: ModelType) -> tuple[str, ...] | None:
    """The config's keys of the parts of a family; None if that is not known, and any may matter."""
    for beginnings, parts in _PARTS.items():
        if model_type.value.startswith(beginnings):
            return parts
    return None
