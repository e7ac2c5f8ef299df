"""What an adapter file says about itself: the fields that kohya's tools, ComfyUI and model managers show."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modules.modelSaver.adapter_layout import ALPHA, DOWN, rank_of

from torch import Tensor

# component -> layer -> part -> tensor
ComponentLayers = Mapping[str, Mapping[str, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class AdapterDescription:
    """What the trainer knows about an adapter beside its tensors. Empty fields are left out of the file.

    Attributes:
        title: shown by model managers, usually the output's file name without its ending.
        architecture: of the Stability model spec, for example "stable-diffusion-v1" or "stable-diffusion-v2-768-v".
        base_version: kohya's name of the base, for example "sd_v1", "sd_v2", "sdxl_base_v1-0".
        base_model: name or file name of the base model; no path, as files are shared.
        resolution: "<width>x<height>" in pixels.
        prediction_type: "epsilon" or "v".
        config_hash: hash of the training config.
        comment: free text.
    """

    title: str = ""
    architecture: str = ""
    base_version: str = ""
    base_model: str = ""
    resolution: str = ""
    prediction_type: str = ""
    config_hash: str = ""
    comment: str = ""


def adapter_metadata(description: AdapterDescription, components: ComponentLayers) -> dict[str, str]:
    """Metadata of a LoRA file, without the hashes, which belong to the bytes.

    There is no date or time in it: the same run gives the same bytes, and a file's age is the file system's business.
    """
    layers = [parts for component in components.values() for parts in component.values()]
    convolutions = [parts for parts in layers if DOWN in parts and parts[DOWN].dim() == 4]
    linear = [parts for parts in layers if DOWN in parts and parts[DOWN].dim() == 2]
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{description.architecture}/lora" if description.architecture else "",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": description.title,
        "modelspec.resolution": description.resolution,
        "modelspec.prediction_type": description.prediction_type,
        "modelspec.description": description.comment,
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common(rank_of(parts) for parts in linear or convolutions),
        "ss_network_alpha": _common(alpha_of(parts) for parts in linear or convolutions),
        "ss_output_name": description.title,
        "ss_base_model_version": description.base_version,
        "ss_sd_model_name": description.base_model,
        "ss_resolution": _kohya_resolution(description.resolution),
        "ss_training_comment": description.comment,
        "config_hash": description.config_hash,
    }
    if description.base_version.startswith("sd_v"):
        metadata["ss_v2"] = str(description.base_version.startswith("sd_v2"))
    if convolutions and linear:
        arguments = {
            "conv_dim": _common(rank_of(parts) for parts in convolutions),
            "conv_alpha": _common(alpha_of(parts) for parts in convolutions),
        }
        metadata["ss_network_args"] = json.dumps(arguments)
    return {key: value for key, value in metadata.items() if value}


def alpha_of(parts: Mapping[str, Tensor]) -> float:
    """The alpha of a LoRA's parts; its rank if it has none."""
    return float(parts[ALPHA].item()) if ALPHA in parts else float(rank_of(parts) or 1)


def _common(values: Iterable[float | int | None]) -> str:
    """The one value, or "Dynamic", which is kohya's word for several."""
    counted = Counter(values)
    if len(counted) != 1:
        return "Dynamic" if counted else ""
    value = next(iter(counted))
    return f"{value:g}" if isinstance(value, (int, float)) else ""


def _kohya_resolution(resolution: str) -> str:
    width, found, height = resolution.partition("x")
    return f"({width}, {height})" if found else ""
