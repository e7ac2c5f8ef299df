"""Which kind of adapter the parts of a layer make up, whether they fit each other and the layer.

Axes: `o` out, `i` in, `kh kw` kernel, `r` rank, `b` block size, `k` blocks. A layer is seen as a matrix of `o` rows and
`f = i·kh·kw` columns (the fan-in).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from modules.modelSaver.adapter_layout import (
    ALPHA,
    DIFF,
    DIFF_BIAS,
    DORA,
    DOWN,
    MAGNITUDE,
    MID,
    OFT_INPUT,
    OFT_OUTPUT,
    OFT_SCALED,
    RESCALE,
    UP,
)
from modules.module.kernel_layout import KERNELS, fitting_layouts, misfit

import torch
from torch import Tensor, nn

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

# kind -> parts that only it has; parts that it may have beside them
_OWN: dict[str, frozenset[str]] = {
    "LoRA": frozenset({DOWN, UP, MID}),
    "LoHa": frozenset({*_LOHA, "hada_t1", "hada_t2"}),
    "LoKr": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
    "OFT": frozenset({OFT_INPUT, OFT_SCALED, KERNELS}),
    "output-side OFT": frozenset({OFT_OUTPUT, RESCALE}),
    "diff": frozenset({DIFF, DIFF_BIAS}),
}
_BESIDE: dict[str, frozenset[str]] = {
    "LoRA": frozenset({ALPHA, DORA, MAGNITUDE}),
    "LoHa": frozenset({ALPHA}),
    "LoKr": frozenset({ALPHA, DORA}),
    "OFT": frozenset({DORA}),
    "output-side OFT": frozenset({ALPHA, DORA}),
    "diff": frozenset(),
}

_MAY_BE_WHOLE = frozenset({ALPHA, OFT_SCALED, KERNELS})


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter as files tell it.

    Attributes:
        base: "LoRA", "LoHa", "LoKr", "OFT" (on inputs), "output-side OFT" or "diff".
        dora: what the lengths of a weight decomposition belong to: "input", "output", or "" where there is none.
    """

    base: str
    dora: str = ""

    def __str__(self) -> str:
        if not self.dora:
            return self.base
        name = {"LoRA": "DoRA", "OFT": "DoRA-OFT", "output-side OFT": "output-side DoRA-OFT"}.get(self.base)
        return f"{name or self.base + ' with DoRA'} on {self.dora}s"


class PartError(ValueError):
    """A part of a layer's adapter that can't be right. The text goes on from the part's name.

    Attributes:
        part: its internal name.
    """

    def __init__(self, part: str, text: str) -> None:
        super().__init__(text)
        self.part = part


def kind_of_parts(parts: Mapping[str, Tensor]) -> AdapterKind:
    """The kind of a layer's adapter. Raises PartError for parts of several kinds or of none, and for missing ones."""
    bases = [base for base, own in _OWN.items() if own & parts.keys()]
    first = min(parts)
    if not bases:
        raise PartError(first, "makes up no adapter by itself. The file is incomplete; save it again.")
    if len(bases) > 1:
        part = min(_OWN[bases[1]] & parts.keys())
        raise PartError(part, f"belongs to {bases[1]}, but the layer has parts of {bases[0]}, too: expected one kind.")
    base = bases[0]
    foreign = sorted(parts.keys() - _OWN[base] - _BESIDE[base])
    if foreign:
        raise PartError(foreign[0], f"is no part of {base}, which the layer is otherwise.")
    for needed in _needed(base, parts):
        if needed not in parts:
            raise PartError(first, f"stands without {needed}. The file is incomplete; save it again.")
    if DORA not in parts and MAGNITUDE not in parts:
        return AdapterKind(base)
    return AdapterKind(base, "input" if _on_inputs(base, parts) else "output")


def _on_inputs(base: str, parts: Mapping[str, Tensor]) -> bool:
    """Whether lengths `[o, 1(, 1, 1)]` or `[1, i(, 1, 1)]` are the latter; peft's vector always belongs to outputs."""
    if DORA not in parts or parts[DORA].dim() < 2 or parts[DORA].shape[0] != 1:
        return False
    if parts[DORA].numel() > 1:
        return True
    # a single length is that of the only output, if there is but one, as `on_output_axis` has it
    if base == "LoRA":
        return parts[UP].shape[:1] != (1,)
    if base == "LoKr":
        first = parts["lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"].shape[:1]
        side = "lokr_t2" in parts
        second = parts["lokr_w2"].shape[:1] if "lokr_w2" in parts else parts["lokr_w2_a"].shape[side : side + 1]
        return (*first, *second) != (1, 1)
    # the rotated side has two channels at least, and lengths are on the other one
    return base == "output-side OFT"


def _needed(base: str, parts: Mapping[str, Tensor]) -> list[str]:
    if base == "LoRA":
        return [DOWN, UP]
    if base == "LoHa":
        tucker = "hada_t1" in parts or "hada_t2" in parts
        return [*_LOHA, "hada_t1", "hada_t2"] if tucker else [*_LOHA]
    if base == "LoKr":
        first = ["lokr_w1"] if "lokr_w1" in parts else ["lokr_w1_a", "lokr_w1_b"]
        return first + (["lokr_w2"] if "lokr_w2" in parts else ["lokr_w2_a", "lokr_w2_b"])
    return {"OFT": [OFT_INPUT], "output-side OFT": [OFT_OUTPUT], "diff": [DIFF]}[base]


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """The rank of a low-rank adapter, the block size of a rotation; None where there is neither."""
    if DOWN in parts:
        return parts[DOWN].shape[0]
    if "hada_w1_b" in parts:
        return parts["hada_w1_b"].shape[0]
    for part in ("lokr_w2_b", "lokr_w1_b"):
        if part in parts:
            return parts[part].shape[0]
    if OFT_INPUT in parts:
        return block_size_of(parts[OFT_INPUT].shape[-1])
    return parts[OFT_OUTPUT].shape[-1] if OFT_OUTPUT in parts else None


def alpha_of(parts: Mapping[str, Tensor]) -> float | None:
    """The alpha of a low-rank adapter, its rank if it has none; None for kinds without."""
    if ALPHA in parts:
        return float(parts[ALPHA].item())
    rank = rank_of(parts)
    return None if rank is None or OFT_INPUT in parts or OFT_OUTPUT in parts else float(rank)


def block_size_of(elements: int) -> int | None:
    """b with b(b−1)/2 = elements, None if there is no such number."""
    size = (1 + math.isqrt(1 + 8 * elements)) // 2
    return size if size >= 2 and size * (size - 1) // 2 == elements else None


def check_parts(parts: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """Checks that a layer's parts are finite and fit each other; their kind must be known to be one.

    Returns:
        o and f of the layers that they can belong to; None for what the parts leave open.

    Raises:
        PartError: NaN or infinite numbers, quantized ones, shapes that can't belong together.
    """
    for part, tensor in parts.items():
        packed = "float4" in str(tensor.dtype)  # two numbers in one, which torch can't take apart
        if packed or tensor.is_complex() or not (tensor.is_floating_point() or part in _MAY_BE_WHOLE):
            raise PartError(
                part, f"holds {tensor.dtype}, expected floating-point numbers. Get the adapter before quantization."
            )  # fmt: skip
        if not torch.isfinite(tensor.float() if tensor.is_floating_point() else tensor).all():
            raise PartError(part, "holds NaN or infinite numbers. The file is damaged; use an earlier one.")
        if tensor.numel() == 0:
            raise PartError(part, f"is empty, its shape is {list(tensor.shape)}. The file is damaged; save it again.")
    if ALPHA in parts and parts[ALPHA].numel() != 1:
        raise PartError(ALPHA, f"has the shape {list(parts[ALPHA].shape)}, expected a single number.")
    base = kind_of_parts(parts).base
    if base == "LoRA":
        out, fan_in = _check_lora(parts)
    elif base == "LoHa":
        out, fan_in = _check_loha(parts)
    elif base == "LoKr":
        out, fan_in = _check_lokr(parts)
    else:
        out, fan_in = _check_full(base, parts)
    if DORA in parts and out is not None and parts[DORA].dim() > 1:
        scale = parts[DORA]
        if scale.numel() != (scale.shape[1] if scale.shape[0] == 1 else out):
            raise PartError(DORA, f"has the shape {list(scale.shape)}, expected [{out}, 1] or [1, inputs].")
    return out, fan_in


def _check_lora(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    down, up = _at_least_2d(parts, DOWN), _at_least_2d(parts, UP)
    if up.shape[1] != down.shape[0] or up[0, 0].numel() != 1:
        raise PartError(
            UP, f"has the shape {list(up.shape)}, expected [outputs, {down.shape[0]}] for the rank of down."
        )
    if MID not in parts:
        return up.shape[0], down[0].numel()
    mid = parts[MID]
    if mid.dim() != 4 or mid.shape[:2] != (down.shape[0], down.shape[0]):
        raise PartError(MID, f"has the shape {list(mid.shape)}, expected [{down.shape[0]}, {down.shape[0]}, kh, kw].")
    if down[0].numel() != down.shape[1]:
        raise PartError(DOWN, f"has the shape {list(down.shape)}, expected [rank, inputs, 1, 1] beside {MID}.")
    return up.shape[0], down.shape[1] * mid[0, 0].numel()


def _check_loha(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    sides = []
    for n in (1, 2):
        a, b = (_at_least_2d(parts, f"hada_w{n}_{side}") for side in "ab")
        core = parts.get(f"hada_t{n}")
        if core is not None:  # a `[r, o]`, b `[r, i]`, core `[r, r, kh, kw]`
            if core.dim() < 3 or core.shape[:2] != (a.shape[0], b.shape[0]):
                raise PartError(f"hada_t{n}", f"has the shape {list(core.shape)}, expected the ranks of both factors.")
            sides.append((a.shape[1], b.shape[1] * core[0, 0].numel()))
            continue
        if a[0].numel() != b.shape[0]:
            raise PartError(f"hada_w{n}_a", f"has the shape {list(a.shape)}, expected [outputs, {b.shape[0]}].")
        sides.append((a.shape[0], b[0].numel()))
    if sides[0] != sides[1]:
        raise PartError("hada_w2_a", f"makes a {sides[1]} matrix, expected {sides[0]} as w1 makes it.")
    return sides[0]


def _check_lokr(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    sides = []
    for n in (1, 2):
        if f"lokr_w{n}" in parts:
            whole = _at_least_2d(parts, f"lokr_w{n}")
            sides.append((whole.shape[0], whole[0].numel()))
            continue
        a, b = (_at_least_2d(parts, f"lokr_w{n}_{side}") for side in "ab")
        core = parts.get("lokr_t2") if n == 2 else None
        if core is not None:  # a `[r, o]`, b `[r, i]`, core `[r, r, kh, kw]`
            if core.dim() < 3 or core.shape[:2] != (a.shape[0], b.shape[0]):
                raise PartError("lokr_t2", f"has the shape {list(core.shape)}, expected the ranks of both factors.")
            sides.append((a.shape[1], b.shape[1] * core[0, 0].numel()))
        elif a[0].numel() != b.shape[0]:
            raise PartError(f"lokr_w{n}_a", f"has the shape {list(a.shape)}, expected [outputs, {b.shape[0]}].")
        else:
            sides.append((a.shape[0], b[0].numel()))
    (o1, f1), (o2, f2) = sides
    return o1 * o2, f1 * f2


def _check_full(base: str, parts: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """OFT and diff."""
    if base == "OFT":
        weight = parts[OFT_INPUT]
        if weight.dim() != 2 or block_size_of(weight.shape[1]) is None:
            raise PartError(OFT_INPUT, f"has the shape {list(weight.shape)}, expected [blocks, b(b−1)/2].")
        return None, None
    if base == "output-side OFT":
        blocks = parts[OFT_OUTPUT]
        if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]:
            more = " Butterfly OFT (BOFT) is not supported." if blocks.dim() == 4 else ""
            raise PartError(OFT_OUTPUT, f"has the shape {list(blocks.shape)}, expected [blocks, b, b].{more}")
        return None, None
    delta = _at_least_2d(parts, DIFF)
    if DIFF_BIAS in parts and parts[DIFF_BIAS].shape != delta.shape[:1]:
        raise PartError(DIFF_BIAS, f"has the shape {list(parts[DIFF_BIAS].shape)}, expected [{delta.shape[0]}].")
    return delta.shape[0], delta[0].numel()


def _at_least_2d(parts: Mapping[str, Tensor], part: str) -> Tensor:
    if parts[part].dim() < 2:
        raise PartError(part, f"has the shape {list(parts[part].shape)}, expected a matrix or a kernel.")
    return parts[part]


def check_fits(parts: Mapping[str, Tensor], layer: nn.Linear | nn.Conv2d) -> None:
    """Checks that parts which passed `check_parts` belong to a layer of this size. Raises PartError."""
    out, fan_in = check_parts(parts)
    if isinstance(layer, nn.Conv2d):
        channels, own_out, groups = layer.in_channels, layer.out_channels, layer.groups
        own_fan_in = channels // groups * math.prod(layer.kernel_size)
    else:  # not the weight's shape, as a quantized weight may be packed
        channels, own_out, groups = layer.in_features, layer.out_features, 1
        own_fan_in = channels
    other = "It was made for another base model."
    main = next(part for part in (DOWN, "hada_w1_b", "lokr_w2", "lokr_w2_b", DIFF, *parts) if part in parts)
    if (out, fan_in) not in ((own_out, own_fan_in), (None, None)):
        raise PartError(main, f"makes a {out} x {fan_in} matrix, expected {own_out} x {own_fan_in}. {other}")
    if OFT_INPUT in parts:
        blocks, size = len(parts[OFT_INPUT]), rank_of(parts) or 1
        if not any(fitting_layouts(layer, blocks, size)):
            raise PartError(OFT_INPUT, misfit(layer, blocks, size))
    if OFT_OUTPUT in parts:
        _check_blocks(parts, OFT_OUTPUT, own_out, groups, "outputs")
    if DORA in parts and parts[DORA].numel() not in (own_out, channels // groups):
        raise PartError(DORA, f"has {parts[DORA].numel()} numbers, expected {own_out} or {channels // groups}. {other}")


def _check_blocks(parts: Mapping[str, Tensor], part: str, channels: int, groups: int, name: str) -> None:
    blocks, size = len(parts[part]), rank_of(parts) or 1
    if channels // groups % size or blocks not in (1, channels // size):
        raise PartError(
            part, f"has {blocks} blocks of {size}, which don't make up the layer's {channels} {name}. "
            "It was made for another base model."
        )  # fmt: skip
