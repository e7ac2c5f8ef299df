"""What ComfyUI sees. Its own modules are imported when a node runs, so that this file loads without it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .rotation import adapted, effective_weight, skew_from_triangles

logger = logging.getLogger(__name__)

INPUT_SIDE, OUTPUT_SIDE = "oft_R.weight", "oft_blocks"
MARKER, DORA = "oft_R.scaled_oft", "dora_scale"
# Metadata: our entry about whole kernels, and what keys of OneTrainer's own start with
KERNELS, ONETRAINER = "oft_kernels", "ot_"


@dataclass(frozen=True)
class OFTPatch:
    """The change of one weight.

    Attributes:
        skew: Q `[k or 1, b, b]`, float32.
        side: "input" or "output".
        dora_scale: of a DoRA-OFT, or None.
        neumann: see `rotation.rotation`.
        kernels: `told` of `rotation.turns_kernels`.
    """

    skew: Tensor
    side: str
    dora_scale: Tensor | None
    neumann: bool
    kernels: bool | None = None

    def apply(
        self, weight: Tensor, strength: float, function: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> Tensor:
        """Adds the change to `weight` in place, as it may be a slice of a larger one; returns it."""
        source = weight.to(dtype)
        turned = adapted(source, self.skew, self.side, self.dora_scale, strength, self.neumann, self.kernels)
        change = turned - source.float()
        weight += function(change).to(weight.dtype)
        return weight


def whole_kernels(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool | None:
    """Whether a file's rotations of inputs turn whole kernels: by our own entry, else by OneTrainer's marks.

    Args:
        tensors: the file.
        metadata: of its header.
    """
    said = {"True": True, "False": False}.get(metadata.get(KERNELS, ""))
    if said is not None:
        return said
    theirs = any(key.startswith(ONETRAINER) for key in metadata) or any(key.endswith(f".{MARKER}") for key in tensors)
    return True if theirs else None


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a safetensors file; none for a file of another kind, or one that can't be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def read_patches(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, Any],
    neumann: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> dict[Any, OFTPatch]:
    """The patches that a file holds: place of a weight in the model -> its change.

    Args:
        tensors: the file.
        names: every name by which files may call a layer -> place of its weight, as ComfyUI's key maps have it.
        neumann: see `rotation.rotation`.
        metadata: of the file's header.

    Raises:
        ValueError: no OFT is in the file, or none of its layers is in the model.
    """
    patches: dict[Any, OFTPatch] = {}
    kernels = whole_kernels(tensors, metadata or {})
    used: set[str] = set()
    for name, place in names.items():
        keys = {part: f"{name}.{part}" for part in (INPUT_SIDE, OUTPUT_SIDE, MARKER, DORA)}
        found = {part: tensors[key] for part, key in keys.items() if key in tensors}
        if INPUT_SIDE in found:
            skew = skew_from_triangles(effective_weight(found[INPUT_SIDE], found.get(MARKER)))
        elif OUTPUT_SIDE in found and found[OUTPUT_SIDE].dim() == 3:
            blocks = found[OUTPUT_SIDE].float()
            skew = blocks - blocks.transpose(1, 2)
        else:
            continue
        side = "input" if INPUT_SIDE in found else "output"
        patches[place] = OFTPatch(skew, side, found.get(DORA), neumann, kernels)
        used |= {keys[part] for part in found}
    if not patches:
        some = any(key.endswith((INPUT_SIDE, OUTPUT_SIDE)) for key in tensors)
        raise ValueError(
            "None of the adapter's layers is in this model: it was made for another base model."
            if some
            else "The file holds no OFT adapter. Use ComfyUI's own LoRA loader for other kinds."
        )
    for key in sorted(tensors.keys() - used):
        logger.warning("key not loaded: %s", key)
    if kernels is None and any(patch.side == "input" and len(patch.skew) == 1 for patch in patches.values()):
        logger.info(
            "The file does not say what its shared blocks rotate in convolutions larger than 1 x 1; input channels are "
            "assumed. If OneTrainer made it, use the file as OneTrainer saved it."
        )
    return patches


@cache
def weight_adapter_class() -> type:
    """The class by which ComfyUI recognises a patch that computes the new weight itself."""
    from comfy.weight_adapter import WeightAdapterBase

    class OFTWeightAdapter(WeightAdapterBase):
        name = "oft_rotation"

        def __init__(self, patch: OFTPatch) -> None:
            self.patch = patch
            self.loaded_keys: set[str] = set()
            self.weights = (patch.skew,)

        # further arguments of later versions don't matter here
        def calculate_weight(
            self,
            weight: Tensor,
            key: str,
            strength: float,
            strength_model: float,
            offset: Any,
            function: Callable[[Tensor], Tensor],
            intermediate_dtype: torch.dtype = torch.float32,
            *_: Any,
            **__: Any,
        ) -> Tensor | None:
            try:
                return self.patch.apply(weight, strength, function, intermediate_dtype)
            except ValueError as error:
                logger.error("%s: %s", key, error)
                return None

    return OFTWeightAdapter


class LoadOFT:
    """Loads an OFT adapter, input or output side, plain or with DoRA, and patches model and text encoder with it."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load"
    CATEGORY = "loaders"
    DESCRIPTION = "Loads OFT adapters (oft_R.weight or oft_blocks). Strength scales the angle of the rotation."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        import folder_paths

        strength = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})
        neumann = {"default": False, "tooltip": "For adapters that were trained with the Neumann series."}
        return {
            "required": {
                "model": ("MODEL",),
                "file_name": (folder_paths.get_filename_list("loras"),),
                "strength_model": strength,
                "strength_clip": strength,
                "neumann": ("BOOLEAN", neumann),
            },
            "optional": {"clip": ("CLIP",)},
        }

    def load(
        self,
        model: Any,
        file_name: str,
        strength_model: float,
        strength_clip: float,
        neumann: bool = False,
        clip: Any = None,
    ) -> tuple[Any, Any]:
        """Clones of model and clip with the patches; the given ones stay as they are."""
        import comfy.lora
        import comfy.utils
        import folder_paths

        path = folder_paths.get_full_path("loras", file_name)
        tensors = comfy.utils.load_torch_file(path, safe_load=True)
        names = comfy.lora.model_lora_keys_unet(model.model, {})
        if clip is not None:
            names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
        make = weight_adapter_class()
        patches = {
            place: make(patch) for place, patch in read_patches(tensors, names, neumann, read_metadata(path)).items()
        }
        model, clip = model.clone(), None if clip is None else clip.clone()
        # each takes those that are its own
        model.add_patches(patches, strength_model)
        if clip is not None:
            clip.add_patches(patches, strength_clip)
        return model, clip


NODE_CLASS_MAPPINGS = {"LoadOFTRotation": LoadOFT}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadOFTRotation": "Load OFT adapter"}
