"""What an adapter file says about itself: the fields that kohya's tools, ComfyUI and model managers show."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modules.modelSaver.adapter_kinds import AdapterKind, alpha_of, kind_of_parts, rank_of
from modules.module.LoRAFileKind import LoRAFileKind

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
        neumann: whether rotations were trained as the Neumann series; None where that is not known or means nothing.
        kernels: whether rotations of inputs turn whole kernels of convolutions, see `kernel_layout.py`; None where that
            is not known. Layers whose parts say so themselves win.
    """

    title: str = ""
    architecture: str = ""
    base_version: str = ""
    base_model: str = ""
    resolution: str = ""
    prediction_type: str = ""
    config_hash: str = ""
    comment: str = ""
    neumann: bool | None = None
    kernels: bool | None = None


# Names by which kohya's tools and model managers know plain LoRA, and LyCORIS's algorithms
KOHYA, LYCORIS = "networks.lora", "lycoris.kohya"
# Metadata key of files of ours: whether rotations are the Neumann series, as no tensor tells
NEUMANN = "oft_cayley_neumann"
# Metadata key of files of ours: whether rotations of inputs turn whole kernels, as a single shared block fits channels,
# too
OFT_KERNELS = "oft_kernels"
# What OneTrainer's metadata keys start with, those that are its alone
ONETRAINER = "ot_"


def adapter_metadata(description: AdapterDescription, components: ComponentLayers) -> dict[str, str]:
    """Metadata of an adapter file of any kind, without the hashes, which belong to the bytes.

    There is no date or time in it: the same run gives the same bytes, and a file's age is the file system's business.
    """
    layers = [parts for component in components.values() for parts in component.values()]
    kind = kind_of_parts(layers[0]) if layers else AdapterKind(LoRAFileKind.name)
    convolutions = [parts for parts in layers if kind.file_kind.on_convolution(parts)]
    others = [parts for parts in layers if not kind.file_kind.on_convolution(parts)]
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{description.architecture}/lora" if description.architecture else "",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": description.title,
        "modelspec.resolution": description.resolution,
        "modelspec.prediction_type": description.prediction_type,
        "modelspec.description": description.comment,
        "adapter_kind": str(kind),
        "ss_network_module": _network_module(kind),
        "ss_network_dim": _common(rank_of(parts) for parts in others or convolutions),
        "ss_network_alpha": _common(alpha_of(parts) for parts in others or convolutions),
        "ss_output_name": description.title,
        "ss_base_model_version": description.base_version,
        "ss_sd_model_name": description.base_model,
        "ss_resolution": _kohya_resolution(description.resolution),
        "ss_training_comment": description.comment,
        "config_hash": description.config_hash,
        NEUMANN: "" if description.neumann is None or not kind.file_kind.rotates else str(description.neumann),
        OFT_KERNELS: _kernels(description, kind, layers),
    }
    if description.base_version.startswith("sd_v"):
        metadata["ss_v2"] = str(description.base_version.startswith("sd_v2"))
    arguments = _network_arguments(kind, layers)
    if convolutions and others:
        arguments |= {
            "conv_dim": _common(rank_of(parts) for parts in convolutions),
            "conv_alpha": _common(alpha_of(parts) for parts in convolutions),
        }
    if arguments:
        metadata["ss_network_args"] = json.dumps(arguments)
    return {key: value for key, value in metadata.items() if value}


def _kernels(description: AdapterDescription, kind: AdapterKind, layers: Iterable[Mapping[str, Tensor]]) -> str:
    if not kind.file_kind.two_layouts:
        return ""
    if any(kind.file_kind.turns_kernels(parts) for parts in layers):
        return "True"
    return "" if description.kernels is None else str(description.kernels)


def _network_module(kind: AdapterKind) -> str:
    """Whose network it is; nothing for kinds that nobody else has."""
    if kind.file_kind.kohya and not kind.dora:
        return KOHYA
    return LYCORIS if kind.file_kind.algorithm else ""


def _network_arguments(kind: AdapterKind, layers: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """What LyCORIS was told, for the same kind; nothing for kohya's own."""
    if _network_module(kind) != LYCORIS:
        return {}
    arguments = {"algo": kind.file_kind.algorithm}
    if kind.file_kind.size_argument:
        arguments[kind.file_kind.size_argument] = _common(rank_of(parts) for parts in layers)
    arguments |= kind.file_kind.network_arguments(layers)
    if kind.dora:
        arguments |= {"dora_wd": "True", "wd_on_output": str(kind.dora == "output")}
    return arguments


def _common(values: Iterable[float | int | None]) -> str:
    """The one value, or "Dynamic", which is kohya's word for several."""
    counted = Counter(value for value in values if value is not None)
    if len(counted) != 1:
        return "Dynamic" if counted else ""
    return f"{next(iter(counted)):g}"


def _kohya_resolution(resolution: str) -> str:
    width, found, height = resolution.partition("x")
    return f"({width}, {height})" if found else ""
