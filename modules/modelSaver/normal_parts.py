"""The one form in which the program knows what other programs write in several."""

from collections.abc import Mapping

from modules.modelSaver.adapter_kinds import file_kind_of
from modules.module.FileKind import ALPHA, PartError, Sides
from modules.module.magnitude import DORA_SCALE, PEFT_MAGNITUDE

from torch import Tensor


def normal_parts(parts: Mapping[str, Tensor], sides: Sides) -> dict[str, Tensor]:
    """Parts of one layer in normal form, for the same ΔW. Applied twice it does nothing more.

    - peft's magnitude vector, ai-toolkit's `magnitude`, and a one-dimensional `dora_scale`, become `dora_scale`
      `[o, 1(, 1, 1)]` (or `[1, i]`).
    - Float8 numbers become float32, as torch does not compute with them.
    - What a kind itself can write in several ways has the form that its `FileKind.normal` makes.

    Args:
        parts: by internal name; they passed `check_parts`.
        sides: what `check_parts` returned.

    Raises:
        PartError: an option that nothing here can express.
    """
    normal = {part: tensor.float() if _float8(tensor) else tensor for part, tensor in parts.items()}
    if ALPHA in normal:
        normal[ALPHA] = normal[ALPHA].float().reshape(())
    if PEFT_MAGNITUDE in normal or (DORA_SCALE in normal and normal[DORA_SCALE].dim() < 2):
        _shape_magnitude(normal, sides)
    return file_kind_of(normal).normal(normal)


def _float8(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def _shape_magnitude(normal: dict[str, Tensor], sides: Sides) -> None:
    if PEFT_MAGNITUDE in normal and DORA_SCALE in normal:
        raise PartError(
            PEFT_MAGNITUDE, f"stands beside {DORA_SCALE}, which is the same in another spelling. Save it again."
        )
    part = PEFT_MAGNITUDE if PEFT_MAGNITUDE in normal else DORA_SCALE
    scale, out = normal.pop(part).flatten(), sides[0]
    if out is None:
        raise PartError(part, f"has {scale.dim()} axes, expected [outputs, 1] or [1, inputs].")
    weight = file_kind_of(normal).weight_like(normal)
    ones = (1,) * ((weight.dim() if weight is not None else 2) - 1)
    if scale.numel() == out:
        normal[DORA_SCALE] = scale.reshape(-1, *ones)
    elif part == DORA_SCALE and weight is not None and scale.numel() == weight.shape[1]:
        normal[DORA_SCALE] = scale.reshape(1, -1, *ones[1:])
    else:
        raise PartError(part, f"has {scale.numel()} numbers, expected one for each of {out} outputs.")
