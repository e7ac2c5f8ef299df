"""Which kind of adapter the parts of a layer make up, whether they fit each other and the layer.

Axes: `o` out, `i` in, `kh kw` kernel. A layer is seen as a matrix of `o` rows and `f = i·kh·kw` columns (the fan-in).
"""

from dataclasses import dataclass

from modules.module.FileKind import ALPHA, OTHER_BASE, FileKind, Layer, PartError, Parts, Sides
from modules.module.kinds import file_kind_named, file_kinds
from modules.module.magnitude import DORA_SCALE, PEFT_MAGNITUDE

import torch
from torch import nn


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter as files tell it.

    Attributes:
        base: name of its `FileKind`.
        dora: the side of the weight's magnitudes: "input", "output", or "" without weight decomposition.
    """

    base: str
    dora: str = ""

    def __str__(self) -> str:
        return self.file_kind.title(self.dora)

    @property
    def file_kind(self) -> FileKind:
        """What files know of the kind."""
        return file_kind_named(self.base)

    @property
    def needs_weights(self) -> bool:
        """Whether ΔW depends on the base's weights: rotations, for one, and magnitudes of weight vectors."""
        return bool(self.dora) or not self.file_kind.adds


def file_kind_of(parts: Parts) -> FileKind:
    """The registered kind to which some of the parts belong, see `kind_of_parts`, which also checks them."""
    return next(kind for kind in file_kinds() if kind.own & parts.keys())


def kind_of_parts(parts: Parts) -> AdapterKind:
    """The kind of a layer's adapter. Raises PartError for parts of several kinds or of none, and for missing ones."""
    kinds = [kind for kind in file_kinds() if kind.own & parts.keys()]
    first = min(parts)
    if not kinds:
        raise PartError(first, "makes up no adapter by itself. The file is incomplete; save it again.")
    kind = kinds[0]
    if len(kinds) > 1:
        part = min(kinds[1].own & parts.keys())
        raise PartError(
            part, f"belongs to {kinds[1].name}, but the layer has parts of {kind.name}, too: expected one kind."
        )
    foreign = sorted(parts.keys() - kind.own - kind.beside)
    if foreign:
        raise PartError(foreign[0], f"is no part of {kind.name}, which the layer is otherwise.")
    for needed in kind.needed(parts):
        if needed not in parts:
            raise PartError(first, f"stands without {needed}. The file is incomplete; save it again.")
    if DORA_SCALE not in parts and PEFT_MAGNITUDE not in parts:
        return AdapterKind(kind.name)
    return AdapterKind(kind.name, "input" if _on_inputs(kind, parts) else "output")


def _on_inputs(kind: FileKind, parts: Parts) -> bool:
    """Whether magnitudes `[o, 1(, 1, 1)]` or `[1, i(, 1, 1)]` are the latter; peft's vector always is of outputs."""
    if DORA_SCALE not in parts or parts[DORA_SCALE].dim() < 2 or parts[DORA_SCALE].shape[0] != 1:
        return False
    # a single one is that of the only output, if there is but one, as `on_output_axis` has it
    return parts[DORA_SCALE].numel() > 1 or kind.single_on_inputs(parts)


def rank_of(parts: Parts) -> int | None:
    """The rank of a low-rank adapter, the block size of a rotation; None where there is neither."""
    return file_kind_of(parts).rank(parts)


def alpha_of(parts: Parts) -> float | None:
    """The alpha of a low-rank adapter, its rank if it has none; None for kinds without."""
    return file_kind_of(parts).alpha(parts)


def scale_of(parts: Parts) -> float:
    """alpha/rank; 1 for a kind without, or where the form has no rank, so that alpha is ignored."""
    alpha, rank = alpha_of(parts), rank_of(parts)
    return 1.0 if alpha is None or rank is None else alpha / rank


def check_parts(parts: Parts) -> Sides:
    """Checks that a layer's parts are finite and fit each other; their kind must be known to be one.

    Returns:
        o and f of the layers that they can belong to; None for what the parts leave open.

    Raises:
        PartError: NaN or infinite numbers, quantized ones, shapes that can't belong together.
    """
    may_be_whole = frozenset({ALPHA}).union(*(kind.whole_numbers for kind in file_kinds()))
    for part, tensor in parts.items():
        packed = "float4" in str(tensor.dtype)  # two numbers in one, which torch can't take apart
        if packed or tensor.is_complex() or not (tensor.is_floating_point() or part in may_be_whole):
            raise PartError(
                part, f"holds {tensor.dtype}, expected floating-point numbers. Get the adapter before quantization."
            )  # fmt: skip
        if not torch.isfinite(tensor.float() if tensor.is_floating_point() else tensor).all():
            raise PartError(part, "holds NaN or infinite numbers. The file is damaged; use an earlier one.")
        if tensor.numel() == 0:
            raise PartError(part, f"is empty, its shape is {list(tensor.shape)}. The file is damaged; save it again.")
    if ALPHA in parts and parts[ALPHA].numel() != 1:
        raise PartError(ALPHA, f"has the shape {list(parts[ALPHA].shape)}, expected a single number.")
    out, fan_in = kind_of_parts(parts).file_kind.check(parts)
    if DORA_SCALE in parts and out is not None and parts[DORA_SCALE].dim() > 1:
        scale = parts[DORA_SCALE]
        if scale.numel() != (scale.shape[1] if scale.shape[0] == 1 else out):
            raise PartError(DORA_SCALE, f"has the shape {list(scale.shape)}, expected [{out}, 1] or [1, inputs].")
    return out, fan_in


def check_fits(parts: Parts, layer: Layer) -> None:
    """Checks that parts which passed `check_parts` belong to a layer of this size. Raises PartError."""
    check_parts(parts)
    file_kind_of(parts).check_fits(parts, layer)
    if DORA_SCALE not in parts:
        return
    if isinstance(layer, nn.Conv2d):
        outputs, inputs = layer.out_channels, layer.in_channels // layer.groups
    else:
        outputs, inputs = layer.out_features, layer.in_features
    found = parts[DORA_SCALE].numel()
    if found not in (outputs, inputs):
        raise PartError(DORA_SCALE, f"has {found} numbers, expected {outputs} or {inputs}. {OTHER_BASE}")
