"""What lists say of a run's config: family, method and output, from its JSON as it is, without checking it."""

from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.viewModel.value_names import value_name


def family_name(config: Mapping[str, Any]) -> str:
    """The model family: SDXL."""
    return value_name(ModelType, _text(config, "model_type"))


def method_name(config: Mapping[str, Any]) -> str:
    """What is trained: LoRA, DoRA, OFT, Full fine-tuning."""
    method = _text(config, "training_method")
    if method != TrainingMethod.LORA:
        return value_name(TrainingMethod, method)
    kind = value_name(PeftType, _text(config, "peft_type"))
    decomposes = config.get("lora_decompose", _defaults()["lora_decompose"]) is True
    return {"LoRA": "DoRA", "OFT": "DoRA-OFT"}.get(kind, kind) if decomposes else kind


def output_of(config: Mapping[str, Any]) -> str:
    """The file or folder that it writes."""
    return _text(config, "output_model_destination")


def output_name(config: Mapping[str, Any]) -> str:
    """The name of that without its ending."""
    return PurePath(output_of(config)).stem


def _text(config: Mapping[str, Any], key: str) -> str:
    return str(config.get(key, _defaults()[key]))


@cache
def _defaults() -> dict[str, Any]:
    return TrainConfig().to_dict()
