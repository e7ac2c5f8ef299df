"""What an adapter file says about itself: the fields that kohya's tools, ComfyUI and model managers show."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modules.modelSaver.adapter_kinds import AdapterKind, alpha_of, kind_of_parts, rank_of
from modules.modelSaver.adapter_layout import DOWN
from modules.module.kernel_layout import KERNELS

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


# Names by which kohya's tools and model managers know the kinds that are not plain LoRA: LyCORIS's algorithms. A
# rotation of inputs is none of LyCORIS's; it has OneTrainer's name.
LYCORIS, ALGORITHMS = "lycoris.kohya", {"LoRA": "lora", "LoHa": "loha", "LoKr": "lokr", "diff": "full"}
ROTATIONS = {"OFT": "oft_2", "output-side OFT": "diag-oft"}


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
    convolutions = [parts for parts in layers if DOWN in parts and parts[DOWN].dim() == 4]
    others = [parts for parts in layers if DOWN not in parts or parts[DOWN].dim() == 2]
    kind = kind_of_parts(layers[0]) if layers else AdapterKind("LoRA")
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
        "ss_network_module": "networks.lora" if kind == AdapterKind("LoRA") else LYCORIS,
        "ss_network_dim": _common(rank_of(parts) for parts in others or convolutions),
        "ss_network_alpha": _common(alpha_of(parts) for parts in others or convolutions),
        "ss_output_name": description.title,
        "ss_base_model_version": description.base_version,
        "ss_sd_model_name": description.base_model,
        "ss_resolution": _kohya_resolution(description.resolution),
        "ss_training_comment": description.comment,
        "config_hash": description.config_hash,
        NEUMANN: "" if description.neumann is None or kind.base not in ROTATIONS else str(description.neumann),
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
    if kind.base != "OFT":
        return ""
    if any(KERNELS in parts for parts in layers):
        return "True"
    return "" if description.kernels is None else str(description.kernels)


def _network_arguments(kind: AdapterKind, layers: Iterable[Mapping[str, Tensor]]) -> dict[str, str]:
    """What LyCORIS was told, for the same kind; nothing for plain LoRA."""
    if kind == AdapterKind("LoRA"):
        return {}
    arguments = {"algo": (ALGORITHMS | ROTATIONS)[kind.base]}
    if kind.base in ROTATIONS:
        arguments["block_size"] = _common(rank_of(parts) for parts in layers)
    if kind.base == "LoKr" and any("lokr_w2" in parts for parts in layers):
        arguments["full_matrix"] = str(all("lokr_w2" in parts for parts in layers))
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
