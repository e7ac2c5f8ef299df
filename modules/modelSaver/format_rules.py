"""Which kinds of adapters a format can hold, and what its readers make of them."""

from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.base_norm import LOW_RANK
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

# diffusers' loaders know LoRA, and DoRA in peft's form, which is that on outputs. They drop `dora_scale`.
PEFT_KINDS = (AdapterKind("LoRA"), AdapterKind("LoRA", "output"))


def holds(model_format: ModelFormat, kind: AdapterKind) -> bool:
    """Whether a program that reads this format takes this kind from it."""
    return kind in PEFT_KINDS if LAYOUTS[model_format].peft else True


def check_kind(model_format: ModelFormat, kind: AdapterKind) -> None:
    """UserError, with what to choose, if the format can't hold the kind."""
    if holds(model_format, kind):
        return
    others = ", ".join(other for other in LAYOUTS if holds(other, kind))
    more = " or set lora_decompose_output_axis, which diffusers knows" if kind == AdapterKind("LoRA", "input") else ""
    raise UserError(
        f"output_model_format: {model_format} cannot hold {kind}; diffusers loads only LoRA and DoRA on outputs. "
        f"Choose one of {others}{more}, or a portable_copy."
    )


def remarks(model_format: ModelFormat, kind: AdapterKind) -> list[str]:
    """What a user should know before a kind is written in a format; empty if every reader is faithful."""
    found = []
    layout = LAYOUTS[model_format]
    if kind.base == "OFT" or (kind.base == "output-side OFT" and kind.dora):
        found.append(
            f"{kind}: stock ComfyUI cannot apply it. Copy this project's comfyui folder into ComfyUI's custom_nodes, "
            "choose oft_side OUTPUT without lora_decompose, or set portable_copy."
        )
    elif kind.dora == "output" and kind.base in LOW_RANK and layout.base_norm:
        found.append(
            f"{kind}: {model_format} is written for ComfyUI, which divides by the base's norm; the lengths in it are "
            "adjusted, so that ComfyUI is exact. For OneTrainer choose KOHYA_LORA."
        )
    elif kind.dora == "output" and kind.base in LOW_RANK and not layout.peft:
        found.append(
            f"{kind}: ComfyUI reproduces it only roughly from {model_format}. Choose COMFY_LORA, which is adjusted for "
            "it, or lengths on inputs."
        )
    return found
