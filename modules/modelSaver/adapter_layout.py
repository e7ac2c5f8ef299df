"""How adapter files spell the parts of a layer's adapter, and what each format does with them.

Inside the program parts have OneTrainer's internal names: `lora_down.weight`, `lora_up.weight`, `alpha`,
`dora_scale`, `hada_w1_a`, `oft_R.weight` and so on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modules.module.kernel_layout import KERNELS
from modules.util.enum.ModelFormat import ModelFormat

import torch
from torch import Tensor

DOWN, UP, MID, ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"
DORA, MAGNITUDE = "dora_scale", "lora_magnitude_vector"
OFT_INPUT, OFT_SCALED, OFT_OUTPUT, RESCALE = "oft_R.weight", "oft_R.scaled_oft", "oft_blocks", "rescale"
DIFF, DIFF_BIAS = "diff", "diff_b"

# peft itself leaves out the last word; transformers, which loads text encoders, finds the vector only with it
PEFT_MAGNITUDE = f"{MAGNITUDE}.weight"
# Few numbers on which all others depend: they are written in float32, whatever dtype the weights have. Names in files.
EXACT_PARTS = (ALPHA, DORA, PEFT_MAGNITUDE)

_A_B = {DOWN: "lora_A.weight", UP: "lora_B.weight"}


@dataclass(frozen=True)
class AdapterLayout:
    """One way to write parts.

    Attributes:
        spelling: internal part name -> part name in the file; parts that are not listed keep their name.
        peft: alpha is multiplied into the weights, as the format has no place for it, and the scale of a DoRA on
            outputs is a magnitude vector in peft's shape.
        base_norm: the scale of a DoRA on outputs is made for a reader that divides by ‖W‖; see `base_norm.py`.
        cores: Tucker cores of LoKr stay, which ComfyUI cannot load (it gives `torch.kron` a transposed tensor).
        kernels: LoHa's factors of convolutions have four axes, as OneTrainer keeps them; ComfyUI multiplies matrices.
    """

    spelling: Mapping[str, str] = field(default_factory=dict)
    peft: bool = False
    base_norm: bool = False
    cores: bool = False
    kernels: bool = False


# A format is writable if it stands here and the family's naming has it, too.
LAYOUTS: dict[ModelFormat, AdapterLayout] = {
    ModelFormat.SAFETENSORS: AdapterLayout(),
    ModelFormat.KOHYA_LORA: AdapterLayout(),
    ModelFormat.COMFY_LORA: AdapterLayout(_A_B, base_norm=True),
    ModelFormat.DIFFUSERS_LORA: AdapterLayout(_A_B | {MAGNITUDE: PEFT_MAGNITUDE}, peft=True),
    ModelFormat.ORIGINAL_LORA: AdapterLayout(_A_B),
    # these two are OneTrainer's own
    ModelFormat.LEGACY_LORA: AdapterLayout(kernels=True),
    ModelFormat.INTERNAL: AdapterLayout(cores=True, kernels=True),
}

# Every ending by which some program writes a part; the longest that fits is the right one.
_ENDINGS: dict[str, str] = {
    f"{name}.weight": part
    for part, names in {
        DOWN: (".lora_down", ".lora_A", ".lora.down", "_lora.down", ".lora_linear_layer.down"),
        UP: (".lora_up", ".lora_B", ".lora.up", "_lora.up", ".lora_linear_layer.up"),
        MID: (".lora_mid",),
        MAGNITUDE: (f".{MAGNITUDE}",),
    }.items()
    for name in names
} | {".lora_A": DOWN, ".lora_B": UP, ".magnitude": MAGNITUDE}
_PLAIN_PARTS = (
    *(ALPHA, DORA, MAGNITUDE, DIFF, DIFF_BIAS, OFT_INPUT, OFT_SCALED, OFT_OUTPUT, RESCALE),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
)
_ENDINGS |= {f".{part}": part for part in _PLAIN_PARTS}
_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)
# peft keeps each adapter under a name of the user's: "default" unless told otherwise
_NAMED = re.compile(
    r"(?P<layer>.+)(?P<part>\.lora_[AB]|\.oft_R|\.lora_magnitude_vector)\.(?P<name>[^.]+)(?P<end>\.weight)"
    r"|(?P<layer2>.+)(?P<part2>\.lora_magnitude_vector|\.hada_\w+|\.lokr_\w+)\.(?P<name2>(?!weight$)[^.]+)"
)

_KOHYA_STARTS = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_", "lycoris_")
_COMFY_STARTS = ("diffusion_model.", "text_encoders.")
_DIFFUSERS_STARTS = ("unet.", "transformer.", "text_encoder", "base_model.model.")
# OneTrainer keeps these to itself; the first two of each three are dotted forms of kohya's prefixes
_INTERNAL_STARTS = ("lora_unet.", "lora_te.", "lora_te1.", "lora_te2.", "lora_te3.", "lora_transformer.", "clip_")
_TEXT_STARTS = ("lora_te", "text_encoder", "clip_", "t5")
_PEFT_SPELLINGS = (".lora_A", ".lora_B", ".lora.", "_lora.", ".lora_linear_layer.")


def without_adapter_name(key: str) -> tuple[str, str]:
    """A key without the adapter's own name that peft puts into it, and that name; "" where there is none."""
    found = _NAMED.fullmatch(key)
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
    for ending in _LONGEST_FIRST:
        if key.endswith(ending) and len(key) > len(ending):
            layer = key.removesuffix(ending)
            if ending.startswith("_lora."):  # attention processors of early diffusers versions
                layer = layer.replace(".processor.", ".")
                layer += ".0" if layer.endswith(".to_out") else ""
            return layer, _ENDINGS[ending]
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
        peft = any(spelling in key for key in keys for spelling in _PEFT_SPELLINGS)
        return ModelFormat.DIFFUSERS_LORA if peft else ModelFormat.INTERNAL
    return ModelFormat.ORIGINAL_LORA


def fold_alpha(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA parts without alpha, for the same ΔW: alpha/rank is multiplied into the down matrix.

    Down rather than up, because its values are far larger, so that half precision still holds them.
    """
    folded = {name: tensor for name, tensor in parts.items() if name != ALPHA}
    if DOWN in parts and ALPHA in parts:
        folded[DOWN] = parts[DOWN].float() * (parts[ALPHA].item() / parts[DOWN].shape[0])
    return folded


def unfold_alpha(parts: Mapping[str, Tensor], alpha: Tensor) -> dict[str, Tensor]:
    """Undoes `fold_alpha`."""
    return dict(parts) | {DOWN: parts[DOWN].float() * (parts[DOWN].shape[0] / alpha.item()), ALPHA: alpha}


def peft_magnitude(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts whose scale of a DoRA on outputs, `[o, 1(, 1, 1)]`, has peft's shape: `[o]`, for kernels `[1, o, 1, 1]`."""
    result = dict(parts)
    if DORA in parts:
        scale = result.pop(DORA)
        result[MAGNITUDE] = scale.flatten() if scale.dim() == 2 else scale.reshape(1, -1, 1, 1)
    return result


def without_core(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoKr parts in Tucker's form -> the same w2 as a product of two matrices of the same rank; others as they are.

    w2[o, i, h, w] = Σ a[p, o]·core[p, q, h, w]·b[q, i] is aᵀ times (core·b) `[r, i·h·w]`.
    """
    result = dict(parts)
    if "lokr_t2" in result:
        core = result.pop("lokr_t2").float()
        inner = torch.einsum("pqhw,qi->pihw", core, parts["lokr_w2_b"].float())
        result |= {"lokr_w2_a": parts["lokr_w2_a"].t().contiguous(), "lokr_w2_b": inner.flatten(1)}
    return result


def loha_kernels(parts: Mapping[str, Tensor], kernel: tuple[int, int]) -> dict[str, Tensor]:
    """LoHa's factors of a convolution as two convolutions each, for the same ΔW; other parts are returned as they are.

    w*_b `[r, i·kh·kw]` becomes `[r, i, kh, kw]`, w*_a `[o, r]` becomes `[o, r, 1, 1]`. A Tucker core is multiplied into
    w*_b, as OneTrainer has none.

    Args:
        parts: of one layer, in normal form.
        kernel: kh and kw.
    """
    result = dict(parts)
    for n in (1, 2):
        left, right, core = f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}"
        if core in result:
            result[right] = torch.einsum("pqhw,qi->pihw", result.pop(core).float(), parts[right].float())
            result[left] = parts[left].t()
        if left in result:
            result[left] = result[left].reshape(*result[left].shape, 1, 1)
            result[right] = result[right].reshape(len(result[right]), -1, *kernel)
    return result


def written_parts(parts: Mapping[str, Tensor], layout: AdapterLayout) -> dict[str, Tensor]:
    """Internal parts -> the parts that stand in a file of `layout`, under their names there.

    `KERNELS` is left out: a file's metadata say it.
    """
    parts = {part: tensor for part, tensor in parts.items() if part != KERNELS}
    if not layout.cores:
        parts = without_core(parts)
    if layout.peft:
        parts = peft_magnitude(fold_alpha(parts))
    return {layout.spelling.get(part, part): tensor for part, tensor in parts.items()}
