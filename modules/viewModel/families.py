"""What a form must know of each model family, without torch; of those that can't be trained yet: components."""

from typing import Any

from modules.model.families import FAMILIES, facts_of
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.ModelType import ModelType

SUPPORTED = frozenset(kind for family in FAMILIES for kind in family.model_types)
"""Families that the model room can train."""

# of families that presets may name, but that can't be trained here yet
_COMPONENTS_OF_OTHERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_20"): ("unet", "text_encoder", "vae"),
    ("STABLE_DIFFUSION_XL",): ("unet", "text_encoder", "text_encoder_2", "vae"),
    ("HUNYUAN_VIDEO",): ("transformer", "text_encoder", "text_encoder_2", "vae"),
    ("WUERSTCHEN", "STABLE_CASCADE"): (
        *("prior", "text_encoder", "effnet_encoder"),
        *("decoder", "decoder_text_encoder", "decoder_vqgan"),
    ),
}  # fmt: skip


def sample_defaults_of(model_type: ModelType) -> dict[str, Any]:
    """What a sample in a file is drawn with, in keys that it does not mention."""
    family = facts_of(model_type)
    return dict(family.sample_defaults) if family else {}


def conditioning_of(model_type: ModelType) -> ConditioningSource:
    """Where the conditioning images of a family come from; NONE of those that can't be trained yet."""
    family = facts_of(model_type)
    return family.conditioning if family else ConditioningSource.NONE


def components_of(model_type: ModelType) -> tuple[str, ...] | None:
    """The config's keys of the components of a family; None if that is not known, and any may matter."""
    family = facts_of(model_type)
    if family:
        return family.components
    for beginnings, components in _COMPONENTS_OF_OTHERS.items():
        if model_type.value.startswith(beginnings):
            return components
    return None
