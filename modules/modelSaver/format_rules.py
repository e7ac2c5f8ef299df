"""Which kinds of adapters a format can hold, and what its readers make of them."""

from collections.abc import Callable

from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.base_norm import reads_two_norms
from modules.module.kinds import file_kinds
from modules.util.AdapterNaming import AdapterNaming
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

# The formats from which a user may want to go on in OneTrainer; the last two are its own.
_ONETRAINER = (ModelFormat.SAFETENSORS, ModelFormat.KOHYA_LORA, ModelFormat.LEGACY_LORA, ModelFormat.INTERNAL)
_ONETRAINERS_OWN = _ONETRAINER[2:]


def holds(model_format: ModelFormat, kind: AdapterKind) -> bool:
    """Whether a program that reads this format takes this kind from it."""
    return kind.dora in kind.file_kind.diffusers if LAYOUTS[model_format].peft else True


def check_kind(model_format: ModelFormat, kind: AdapterKind) -> None:
    """UserError, with what to choose, if the format can't hold the kind."""
    if holds(model_format, kind):
        return
    others = ", ".join(other for other in LAYOUTS if holds(other, kind))
    knows_outputs = kind.dora == "input" and "output" in kind.file_kind.diffusers
    more = f" or set {kind.file_kind.output_option}, which diffusers knows" if knows_outputs else ""
    known = " and ".join(known.title(dora) for known in file_kinds() for dora in known.diffusers)
    raise UserError(
        f"output_model_format: {model_format} cannot hold {kind}; diffusers loads only {known}. "
        f"Choose one of {others}{more}, or a portable_copy."
    )


def comfy_remarks(model_format: ModelFormat, kind: AdapterKind, naming: AdapterNaming | None = None) -> list[str]:
    """What ComfyUI does not do with a kind in a format: one line, or none if it is faithful.

    Args:
        model_format: of the file.
        kind: of its adapters.
        naming: of the family, for layers that ComfyUI does not find by their names.
    """
    layout = LAYOUTS[model_format]
    if naming is not None and not naming.in_comfy:
        return [f"{model_format}: ComfyUI does not know this model, so that it loads no adapters of it."]
    remark = kind.file_kind.comfy_remark(kind.dora)
    if remark:
        return [f"{kind}: stock ComfyUI cannot apply it; {remark}"]
    known, everything = _known_to_comfy(model_format, naming)
    if known < everything and not layout.peft:
        return [
            f"{model_format}: ComfyUI finds {known} of the model's {everything} layers by their names in it. Choose "
            "COMFY_LORA for ComfyUI."
        ]
    if kind.file_kind.onetrainer_kernels and layout.kernels and (naming is None or naming.kernels):
        return [
            f"{kind}: ComfyUI fails on convolutions from {model_format}, which holds them as OneTrainer does. Choose "
            "KOHYA_LORA or COMFY_LORA for ComfyUI."
        ]
    if reads_two_norms(kind) and layout.base_norm:
        return [
            f"{kind}: {model_format} is written for ComfyUI, which divides by the base's norm; the magnitude in it is "
            "adjusted, so that ComfyUI is exact. For OneTrainer choose LEGACY_LORA."
        ]
    if reads_two_norms(kind) and not layout.peft:
        return [
            f"{kind}: ComfyUI divides by another norm than was trained, so that {model_format} is off there, the more "
            "so the larger the change is. Choose COMFY_LORA, which is adjusted for it, or a magnitude on inputs."
        ]
    return []


def onetrainer_remarks(
    model_format: ModelFormat,
    kind: AdapterKind,
    naming: AdapterNaming,
    trained: Callable[[str], bool] = lambda path: True,
    channels: bool = False,
) -> list[str]:
    """What keeps OneTrainer from going on from a file: one line, or none. Formats that are for others are no matter.

    Args:
        model_format: of the file.
        kind: of its adapters.
        naming: of the family.
        trained: module path -> whether the layer has an adapter.
        channels: rotations of inputs turn the channels of convolutions, not whole kernels.
    """
    if model_format not in _ONETRAINER:
        return []
    convolutions = {path: kernel for (_, path), kernel in naming.kernels.items() if trained(path)}
    larger = sum(kernel > 1 for kernel in convolutions.values())
    groups = naming.write_fused.get(model_format, {}).values()
    if any(trained(path) for group in groups for _, path in group.layers if len(group.layers) > 1):
        return [
            f"{model_format}: OneTrainer cannot go on from it, as it holds layers that are joined. Choose LEGACY_LORA "
            "for OneTrainer."
        ]
    remark = kind.file_kind.onetrainer_remark(kind.dora, larger if channels else 0)
    if remark:
        return [f"{kind}: OneTrainer goes on from it {remark}"]
    if kind.file_kind.onetrainer_kernels and convolutions and not LAYOUTS[model_format].kernels:
        return [
            f"{kind}: OneTrainer refuses the {len(convolutions)} convolutions in {model_format}, which holds them as "
            "ComfyUI wants them. Choose LEGACY_LORA for OneTrainer."
        ]
    if not kind.file_kind.known_to_onetrainer(kind.dora) and model_format in _ONETRAINERS_OWN:
        return [f"{kind}: OneTrainer has no such adapters, so it cannot go on from {model_format}."]
    return []


def _known_to_comfy(model_format: ModelFormat, naming: AdapterNaming | None) -> tuple[int, int]:
    """How many of all layers ComfyUI finds by their names in the format, and how many there are."""
    names = naming.written(model_format) if naming is not None and naming.comfy else set()
    return len([name for name in names if name in naming.comfy]) if names else 0, len(names)
