from modules.module.AdapterLayout import AdapterLayout
from modules.module.factored_svd import singular_values
from modules.module.FileKind import ALPHA, FileKind, Layer, PartError, Parts, product_sides

import torch
from torch import Tensor, nn

FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")
# the factors whose rows are outputs, and those whose columns are inputs
LEFT, RIGHT = FACTORS[::2], FACTORS[1::2]


class LoHaFileKind(FileKind):
    """LoHa: w*_a `[o, r]`, w*_b `[r, i·kh·kw]`; with Tucker cores w*_a `[r, o]`, w*_b `[r, i]`, t* `[r, r, kh, kw]`."""

    name = "LoHa"
    own = frozenset({*FACTORS, *CORES})
    beside = frozenset({ALPHA})
    peft_parameters = (r"hada_\w+",)
    has_alpha = True
    factors = FACTORS
    main_parts = ("hada_w1_b",)
    adds = True
    joins = True
    onetrainer_kernels = True
    algorithm = "loha"

    def needed(self, parts: Parts) -> list[str]:
        return [*FACTORS, *CORES] if any(core in parts for core in CORES) else [*FACTORS]

    def rank(self, parts: Parts) -> int | None:
        return parts["hada_w1_b"].shape[0]

    def check(self, parts: Parts) -> tuple[int, int]:
        sides = [product_sides(parts, *names) for names in zip(LEFT, RIGHT, CORES, strict=True)]
        if sides[0] != sides[1]:
            raise PartError("hada_w2_a", f"makes a {sides[1]} matrix, expected {sides[0]} as w1 makes it.")
        return sides[0]

    def normal(self, parts: Parts) -> dict[str, Tensor]:
        if CORES[0] in parts:
            return dict(parts)
        return {part: tensor.flatten(1) if part in FACTORS else tensor for part, tensor in parts.items()}

    def for_layer(self, parts: Parts, layout: AdapterLayout, layer: Layer) -> Parts:
        return loha_kernels(parts, layer.kernel_size) if layout.kernels and isinstance(layer, nn.Conv2d) else parts

    def in_kernels(self, parts: Parts) -> bool:
        return any(parts[part].dim() == 4 for part in FACTORS if part in parts)

    def row_parts(self, parts: Parts) -> list[str]:
        return [*LEFT]

    def row_axis(self, part: str, parts: Parts) -> int:
        return 1 if part in LEFT and CORES[0] in parts else 0

    def rank_factors(self, parts: Parts) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        return None if CORES[0] in parts else (LEFT, RIGHT)

    def singular_values(self, parts: Parts) -> Tensor | None:
        return None if CORES[0] in parts else singular_values(*_as_lora(parts))

    def comfy_remark(self, dora: str) -> str:
        return ""

    def known_to_onetrainer(self, dora: str) -> bool:
        return True


def loha_kernels(parts: Parts, kernel: tuple[int, int]) -> dict[str, Tensor]:
    """The factors of a convolution as two convolutions each, for the same ΔW.

    w*_b `[r, i·kh·kw]` becomes `[r, i, kh, kw]`, w*_a `[o, r]` becomes `[o, r, 1, 1]`. A Tucker core is multiplied into
    w*_b, as OneTrainer has none.

    Args:
        parts: of one layer, in normal form.
        kernel: kh and kw.
    """
    result = dict(parts)
    for left, right, core in zip(LEFT, RIGHT, CORES, strict=True):
        if core in result:
            result[right] = torch.einsum("pqhw,qi->pihw", result.pop(core).float(), parts[right].float())
            result[left] = parts[left].t()
        result[left] = result[left].reshape(*result[left].shape, 1, 1)
        result[right] = result[right].reshape(len(result[right]), -1, *kernel)
    return result


def _as_lora(parts: Parts) -> tuple[Tensor, Tensor]:
    """down `[r², f]` and up `[o, r²]` with up·down = (w1_a·w1_b)⊙(w2_a·w2_b), without the scale."""
    w1_a, w1_b, w2_a, w2_b = (parts[name].double().flatten(1) for name in FACTORS)
    up = (w1_a[:, :, None] * w2_a[:, None, :]).flatten(1)
    down = (w1_b[:, None, :] * w2_b[None, :, :]).flatten(0, 1)
    return down, up
