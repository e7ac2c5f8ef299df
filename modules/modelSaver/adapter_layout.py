"""How adapter files spell the parts of a layer's adapter, and what each format does with them.

Inside the program parts have OneTrainer's internal names: `lora_down.weight`, `lora_up.weight`, `alpha`,
`dora_scale`, `hada_w1_a`, `oft_R.weight` and so on. Each `FileKind` knows its own, in all spellings.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from modules.module.AdapterLayout import AdapterLayout
from modules.module.FileKind import FileKind
from modules.module.kinds import file_kinds
from modules.util.enum.ModelFormat import ModelFormat

# A format is writable if it stands here and the family's naming has it, too.
LAYOUTS: dict[ModelFormat, AdapterLayout] = {
    ModelFormat.SAFETENSORS: AdapterLayout(),
    ModelFormat.KOHYA_LORA: AdapterLayout(),
    ModelFormat.COMFY_LORA: AdapterLayout(a_b=True, base_norm=True),
    ModelFormat.DIFFUSERS_LORA: AdapterLayout(a_b=True, peft=True),
    ModelFormat.ORIGINAL_LORA: AdapterLayout(a_b=True),
    # these two are OneTrainer's own
    ModelFormat.LEGACY_LORA: AdapterLayout(kernels=True),
    ModelFormat.INTERNAL: AdapterLayout(cores=True, kernels=True),
}

_KOHYA_STARTS = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_", "lycoris_")
_COMFY_STARTS = ("diffusion_model.", "text_encoders.")
_DIFFUSERS_STARTS = ("unet.", "transformer.", "text_encoder", "base_model.model.")
# OneTrainer keeps these to itself; the first two of each three are dotted forms of kohya's prefixes
_INTERNAL_STARTS = ("lora_unet.", "lora_te.", "lora_te1.", "lora_te2.", "lora_te3.", "lora_transformer.", "clip_")
_TEXT_STARTS = ("lora_te", "text_encoder", "clip_", "t5")


@lru_cache
def _endings(kinds: tuple[FileKind, ...]) -> Mapping[str, str]:
    """Every ending by which some program writes a part -> the part; the longest that fits is the right one."""
    found: dict[str, str] = {}
    for kind in kinds:
        found |= {f".{part}": part for part in (kind.own | kind.beside | kind.refused) - kind.internal}
        found |= {ending: part for part, endings in kind.spellings.items() for ending in endings}
    return {ending: found[ending] for ending in sorted(found, key=len, reverse=True)}


@lru_cache
def _peft_key(kinds: tuple[FileKind, ...]) -> re.Pattern[str]:
    """A key with the name that peft gives each adapter, of the user's choice: "default" unless told otherwise."""
    modules = "|".join(dict.fromkeys(name for kind in kinds for name in kind.peft_modules))
    parameters = "|".join(dict.fromkeys(name for kind in kinds for name in kind.peft_parameters))
    return re.compile(
        rf"(?P<layer>.+)(?P<part>\.(?:{modules}))\.(?P<name>[^.]+)(?P<end>\.weight)"
        rf"|(?P<layer2>.+)(?P<part2>\.(?:{parameters}))\.(?P<name2>(?!weight$)[^.]+)"
    )


def without_adapter_name(key: str) -> tuple[str, str]:
    """A key without the adapter's own name that peft puts into it, and that name; "" where there is none."""
    found = _peft_key(file_kinds()).fullmatch(key)
    if found is None:
        return key, ""
    parts = found.groupdict(default="")
    return (
        f"{parts['layer'] or parts['layer2']}{parts['part'] or parts['part2']}{parts['end']}",
        parts["name"] or parts["name2"],
    )


def split_key(key: str) -> tuple[str, str] | None:
    """A key of an adapter file -> (layer name in the file, internal part name), or None for anything else."""
    key, _ = without_adapter_name(key)
    for ending, part in _endings(file_kinds()).items():
        if key.endswith(ending) and len(key) > len(ending):
            layer = key.removesuffix(ending)
            if ending.startswith("_lora."):  # attention processors of early diffusers versions
                layer = layer.replace(".processor.", ".")
                layer += ".0" if layer.endswith(".to_out") else ""
            return layer, part
    return None


def is_text_layer(layer: str) -> bool:
    """Whether a layer's name in a file is, by its start, that of a text encoder."""
    return layer.startswith(_TEXT_STARTS)


def recognize(layers: Iterable[str], keys: Iterable[str]) -> ModelFormat:
    """The format of a file by its layers' names and its keys."""
    layers = list(layers)
    if any(name.startswith(_KOHYA_STARTS) for name in layers):
        return ModelFormat.KOHYA_LORA
    if any(name.startswith(_COMFY_STARTS) for name in layers):
        return ModelFormat.COMFY_LORA
    if any(name.startswith(_INTERNAL_STARTS) for name in layers):
        return ModelFormat.INTERNAL
    if any(name.startswith(_DIFFUSERS_STARTS) for name in layers):
        marks = [mark for kind in file_kinds() for mark in kind.diffusers_marks]
        peft = any(mark in key for key in keys for mark in marks)
        return ModelFormat.DIFFUSERS_LORA if peft else ModelFormat.INTERNAL
    return ModelFormat.ORIGINAL_LORA
