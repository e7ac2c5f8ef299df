"""What an adapter file can hold beside adapters that are known here, and the words in which it is refused.

Leaving such tensors out would make another adapter of the file, so each kind of them is named and counted.
"""

import re
from collections.abc import Mapping

from modules.modelSaver.adapter_layout import split_key
from modules.module.DiffFileKind import DIFF, DIFF_BIAS
from modules.util.UserError import UserError

from torch import Tensor

_ALONE = "Adapters here change weights of linear layers and convolutions only"
_RETRAIN = "Merge it with the program that made it, or get it without them."
# what it is, in the plural -> the end of its keys. The first that fits is it.
_KEYS: dict[str, re.Pattern[str]] = {
    "biases of LoRA matrices (peft calls the option lora_bias)": re.compile(
        r".+[._](lora_[AB](\.[^.]+)?|lora_(down|up|mid)|lora\.(down|up)|lora_linear_layer\.(down|up))\.bias"
    ),
    "changes of norm layers (LyCORIS's train_norm)": re.compile(r".+\.[wb]_norm"),
    "LoRA matrices of embeddings": re.compile(r".+\.lora_embedding_[AB](\..+)?"),
    "weights that replace the base's own": re.compile(r".+\.(set_weight|reshape_weight)"),
    "parts of GLoRA": re.compile(r".+\.(a1|a2|b1|b2|bm)\.weight"),
    "parts of (IA)³": re.compile(r".+\.(on_input|ia3_l(\..+)?)"),
    "parts of VeRA": re.compile(r".+\.vera_lambda_[bd](\..+)?"),
}
_WHOLE = "tensors of the base that were trained whole (peft's bias or modules_to_save)"
_VECTORS = "changes of norm layers or other vectors (.diff of one axis)"
_BIASES = "changes of biases (.diff_b) of layers that have no .diff"


def refuse_foreign_parts(path: str, tensors: Mapping[str, Tensor]) -> None:
    """UserError if an adapter file holds tensors of kinds that are known but can't be used; it names and counts them.

    A file without a single part of an adapter is let pass: it is something else altogether.

    Args:
        path: of the file, for messages.
        tensors: all that may belong to layers.
    """
    found: dict[str, list[str]] = {}
    parts = {key: split_key(key) for key in sorted(tensors)}
    for key, part in parts.items():
        what = _what(key, part, tensors)
        if what:
            found.setdefault(what, []).append(key)
    some_part = any(part is not None for part in parts.values())
    if not found or (not some_part and found.keys() == {_WHOLE}):
        return
    listed = "; ".join(f"{what}: {len(keys)}, for example {keys[0]}" for what, keys in found.items())
    raise UserError(f"{path}: it holds what can't be used here: {listed}. {_ALONE}. {_RETRAIN}")


def _what(key: str, part: tuple[str, str] | None, tensors: Mapping[str, Tensor]) -> str | None:
    """What a tensor is, if it is nothing that can be used; None for all others, known or not."""
    if part is None:
        known = next((what for what, ending in _KEYS.items() if ending.fullmatch(key)), None)
        return known or (_WHOLE if key.endswith((".weight", ".bias")) else None)
    layer, name = part
    if name == DIFF and tensors[key].dim() == 1:
        return _VECTORS
    if name == DIFF_BIAS and f"{layer}.{DIFF}" not in tensors:
        return _BIASES
    return None
