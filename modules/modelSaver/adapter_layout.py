"""How adapter files spell the parts of a layer's adapter, and how alpha is kept in each format.

Inside the program parts have OneTrainer's internal names: `lora_down.weight`, `lora_up.weight`, `alpha`,
`dora_scale`, `hada_w1_a`, `oft_R.weight` and so on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modules.util.enum.ModelFormat import ModelFormat

from torch import Tensor

DOWN, UP, MID, ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"

_A_B = {DOWN: "lora_A.weight", UP: "lora_B.weight"}


@dataclass(frozen=True)
class AdapterLayout:
    """One way to write parts.

    Attributes:
        spelling: internal part name -> part name in the file; parts that are not listed keep their name.
        fold_alpha: alpha is multiplied into the weights, as the format has no place for it.
    """

    spelling: Mapping[str, str] = field(default_factory=dict)
    fold_alpha: bool = False


# A format is writable if it stands here and the family's naming has it, too.
LAYOUTS: dict[ModelFormat, AdapterLayout] = {
    ModelFormat.SAFETENSORS: AdapterLayout(),
    ModelFormat.KOHYA_LORA: AdapterLayout(),
    ModelFormat.COMFY_LORA: AdapterLayout(_A_B),
    ModelFormat.DIFFUSERS_LORA: AdapterLayout(_A_B, fold_alpha=True),
    ModelFormat.ORIGINAL_LORA: AdapterLayout(_A_B),
    ModelFormat.LEGACY_LORA: AdapterLayout(),
    ModelFormat.INTERNAL: AdapterLayout(),
}

# Every ending by which some program writes a part; the longest that fits is the right one.
_ENDINGS: dict[str, str] = {
    f"{name}.weight": part
    for part, names in {
        DOWN: (".lora_down", ".lora_A", ".lora_A.default", ".lora.down", "_lora.down", ".lora_linear_layer.down"),
        UP: (".lora_up", ".lora_B", ".lora_B.default", ".lora.up", "_lora.up", ".lora_linear_layer.up"),
        MID: (".lora_mid",),
    }.items()
    for name in names
} | {
    ".lora_A": DOWN,
    ".lora_B": UP,
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",
    ".lora_magnitude_vector.default.weight": "lora_magnitude_vector",
    ".lora_magnitude_vector": "lora_magnitude_vector",
}
_PLAIN_PARTS = (
    *(ALPHA, "dora_scale", "diff", "diff_b", "oft_R.weight", "oft_R.scaled_oft", "oft_blocks", "rescale"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
)
_ENDINGS |= {f".{part}": part for part in _PLAIN_PARTS}
_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)


def split_key(key: str) -> tuple[str, str] | None:
    """A key of an adapter file -> (layer name in the file, internal part name), or None for anything else."""
    for ending in _LONGEST_FIRST:
        if key.endswith(ending) and len(key) > len(ending):
            layer = key.removesuffix(ending)
            if ending.startswith("_lora."):  # attention processors of early diffusers versions
                layer = layer.replace(".processor.", ".")
                layer += ".0" if layer.endswith(".to_out") else ""
            return layer, _ENDINGS[ending]
    return None


def recognize(layers: Mapping[str, Mapping[str, Tensor]], keys: Iterable[str]) -> ModelFormat:
    """The format of a file by what is in it."""
    if any(name.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")) for name in layers):
        return ModelFormat.KOHYA_LORA
    if any(name.startswith(("diffusion_model.", "text_encoders.")) for name in layers):
        return ModelFormat.COMFY_LORA
    if any(name.startswith(("unet.", "transformer.", "text_encoder")) for name in layers):
        internal = any(key.endswith((f".{DOWN}", ".alpha")) for key in keys)
        return ModelFormat.INTERNAL if internal else ModelFormat.DIFFUSERS_LORA
    return ModelFormat.ORIGINAL_LORA


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """The rank of a LoRA's parts, None for other adapters."""
    return parts[DOWN].shape[0] if DOWN in parts else None


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
