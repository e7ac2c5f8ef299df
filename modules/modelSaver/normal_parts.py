"""The one form in which the program knows what other programs write in several."""

from collections.abc import Mapping

from modules.modelSaver.adapter_kinds import PartError, block_size_of
from modules.modelSaver.adapter_layout import (
    ALPHA,
    DORA,
    DOWN,
    MAGNITUDE,
    MID,
    OFT_INPUT,
    OFT_OUTPUT,
    OFT_SCALED,
    RESCALE,
)

import torch
from torch import Tensor


def normal_parts(parts: Mapping[str, Tensor], sides: tuple[int | None, int | None]) -> dict[str, Tensor]:
    """Parts of one layer in normal form, for the same ΔW. Applied twice it does nothing more.

    - peft's magnitude vector, ai-toolkit's `magnitude`, and a one-dimensional `dora_scale`, become `dora_scale`
      `[o, 1(, 1, 1)]` (or `[1, i]`).
    - A LoRA's middle kernel is multiplied into down.
    - LoHa's factors are matrices also for convolutions (OneTrainer writes kernels), except in Tucker form.
    - `oft_R.weight` is the effective weight: with OneTrainer's marker it is divided by 2√(b−1).
    - Float8 numbers become float32, as torch does not compute with them.
    - `oft_blocks` obey the bound on their norm that their alpha gives, which is dropped.

    Args:
        parts: by internal name; they passed `check_parts`.
        sides: what `check_parts` returned.

    Raises:
        PartError: an option that nothing here can express.
    """
    normal = {part: tensor.float() if _float8(tensor) else tensor for part, tensor in parts.items()}
    if ALPHA in normal:
        normal[ALPHA] = normal[ALPHA].float().reshape(())
    if MAGNITUDE in normal or (DORA in normal and normal[DORA].dim() < 2):
        _shape_scale(normal, sides)
    if MID in normal:  # down 1 x 1, then mid k x k: their product is a k x k kernel
        down = normal[DOWN].float().flatten(1)
        normal[DOWN] = torch.einsum("rskl,si->rikl", normal.pop(MID).float(), down)
    if "hada_w1_a" in normal and "hada_t1" not in normal:
        normal |= {part: normal[part].flatten(1) for part in normal if part.startswith("hada_")}
    if OFT_INPUT in normal:
        marker = normal.pop(OFT_SCALED, None)
        if marker is not None and bool(marker.ne(0).any()):
            size = block_size_of(normal[OFT_INPUT].shape[1])
            assert size is not None, "check_parts came first"
            normal[OFT_INPUT] = normal[OFT_INPUT].float() / (2 * (size - 1) ** 0.5)
    if OFT_OUTPUT in normal:
        _bound_blocks(normal)
    return normal


def _float8(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def _shape_scale(normal: dict[str, Tensor], sides: tuple[int | None, int | None]) -> None:
    if MAGNITUDE in normal and DORA in normal:
        raise PartError(MAGNITUDE, f"stands beside {DORA}, which is the same in another spelling. Save it again.")
    part = MAGNITUDE if MAGNITUDE in normal else DORA
    scale, out = normal.pop(part).flatten(), sides[0]
    if out is None:
        raise PartError(part, f"has {scale.dim()} axes, expected [outputs, 1] or [1, inputs].")
    weight = normal.get(DOWN, normal.get("diff"))
    ones = (1,) * ((weight.dim() if weight is not None else 2) - 1)
    if scale.numel() == out:
        normal[DORA] = scale.reshape(-1, *ones)
    elif part == DORA and weight is not None and scale.numel() == weight.shape[1]:
        normal[DORA] = scale.reshape(1, -1, *ones[1:])
    else:
        raise PartError(part, f"has {scale.numel()} numbers, expected one for each of {out} outputs.")


def _bound_blocks(normal: dict[str, Tensor]) -> None:
    rescale = normal.pop(RESCALE, None)
    if rescale is not None and not torch.all(rescale == 1):
        raise PartError(
            RESCALE, "scales outputs after the rotation, which is not supported. Merge it with its trainer."
        )
    blocks, bound = normal[OFT_OUTPUT], normal.pop(ALPHA, None)
    if bound is not None and bound > 0:
        norm = torch.linalg.vector_norm(blocks.float() - blocks.float().transpose(1, 2))
        if norm > bound:
            normal[OFT_OUTPUT] = blocks.float() * (bound / norm)
