"""What adapter files must know of a kind of adapter: the base class of all kinds, and the words that they share.

Axes: `o` out, `i` in, `kh kw` kernel, `r` rank. A layer is seen as a matrix of `o` rows and `f = i·kh·kw` columns.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from modules.module.AdapterLayout import AdapterLayout
from modules.module.magnitude import DORA_SCALE

from torch import Tensor, nn

ALPHA = "alpha"
OTHER_BASE = "It was made for another base model."

Layer = nn.Linear | nn.Conv2d
Parts = Mapping[str, Tensor]
# o and f of the layers that parts can belong to; None for what they leave open
Sides = tuple[int | None, int | None]


class PartError(ValueError):
    """A part of a layer's adapter that can't be right. The text goes on from the part's name.

    Attributes:
        part: its internal name.
    """

    def __init__(self, part: str, text: str) -> None:
        super().__init__(text)
        self.part = part


class FileKind(ABC):
    """One kind of adapter in files: which tensors it has, and what can be told and done by them alone.

    A kind is one subclass beside its `AdapterModule`, which names it in `file_kinds`. Everything that reads, writes,
    converts or inspects files asks it and knows no kind by name. The defaults are those of a kind that no other program
    knows, that can't be joined, and whose ΔW can't be told without the base's weights.

    Everywhere below, `parts` are the tensors of one layer by internal part name. `dora` is the side of the weight's
    magnitudes: "input", "output", or "" without weight decomposition.

    Attributes:
        name: in messages and metadata.
        dora_name: name with a weight decomposition; empty for "<name> with DoRA".
        own: parts that only this kind has.
        beside: parts that may stand beside them.
        refused: names of parts that other programs may write for this kind and that it can't use.
        internal: parts that the program adds to those of a file; no file holds them.
        whole_numbers: parts that may be of an integer or boolean type.
        spellings: part -> the ends of keys by which other programs call it.
        exact: names in files of parts that stay float32 whatever dtype the weights get, as all others depend on them.
        peft_modules: regular expressions of the names in peft's keys that the adapter's own name and `.weight` follow.
        peft_parameters: the same for names that only the adapter's own name follows.
        has_alpha: ΔW is scaled by alpha/rank.
        factors: parts that are multiplied by each other, to which another alpha gives another scale, in order.
        main_parts: parts of which the first that is there is named where the sizes are wrong.
        adds: ΔW follows from the parts alone (without magnitudes). Otherwise it depends on the base's weights.
        rotates: ΔW is a rotation of W, computed exactly or as the Neumann series.
        size_name: what `rank` is called in reports.
        resizable: another rank can be computed from the factors LoRA has; other kinds become a LoRA first.
        changes_biases: it can change biases.
        joins: adapters of several layers make up one of the layer in which the layers are stacked on their outputs.
        turns_outputs: it mixes outputs, so that it depends on their order.
        two_layouts: on convolutions the same parts can mean two things, see `kernel_layout.py`.
        kernel_marks: parts in files of which one says that whole kernels are meant.
        onetrainer_kernels: factors of convolutions have four axes in OneTrainer's files and two in others.
        folds_alpha: alpha can be multiplied into its weights, for formats without a place for it.
        diffusers_marks: what in keys says that diffusers or peft wrote them.
        diffusers: the values of `dora` with which diffusers loads it.
        output_option: option of the config that puts magnitudes on outputs; empty where there is none.
        kohya: without magnitudes it is a network of kohya's own scripts.
        algorithm: name by which model managers know it, LyCORIS' where it has one; empty where nobody knows it.
        size_argument: LyCORIS' name for the size, where it is not the rank.
    """

    name: ClassVar[str]
    dora_name: ClassVar[str] = ""
    own: ClassVar[frozenset[str]]
    beside: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[frozenset[str]] = frozenset()
    internal: ClassVar[frozenset[str]] = frozenset()
    whole_numbers: ClassVar[frozenset[str]] = frozenset()
    spellings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    exact: ClassVar[frozenset[str]] = frozenset({ALPHA, DORA_SCALE})
    peft_modules: ClassVar[tuple[str, ...]] = ()
    peft_parameters: ClassVar[tuple[str, ...]] = ()
    has_alpha: ClassVar[bool] = False
    factors: ClassVar[tuple[str, ...]] = ()
    main_parts: ClassVar[tuple[str, ...]] = ()
    adds: ClassVar[bool] = False
    rotates: ClassVar[bool] = False
    size_name: ClassVar[str] = "rank"
    resizable: ClassVar[bool] = False
    changes_biases: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    turns_outputs: ClassVar[bool] = False
    two_layouts: ClassVar[bool] = False
    kernel_marks: ClassVar[frozenset[str]] = frozenset()
    onetrainer_kernels: ClassVar[bool] = False
    folds_alpha: ClassVar[bool] = False
    diffusers_marks: ClassVar[tuple[str, ...]] = ()
    diffusers: ClassVar[tuple[str, ...]] = ()
    output_option: ClassVar[str] = ""
    kohya: ClassVar[bool] = False
    algorithm: ClassVar[str] = ""
    size_argument: ClassVar[str] = ""

    def title(self, dora: str = "") -> str:
        """The name in messages, with the side of the magnitudes."""
        return f"{self.dora_name or self.name + ' with DoRA'} on {dora}s" if dora else self.name

    # What the parts are

    def needed(self, parts: Parts) -> list[str]:
        """The parts without which these parts are incomplete."""
        return sorted(self.own - self.internal)

    def rank(self, parts: Parts) -> int | None:
        """The rank of a low-rank adapter, the block size of a rotation; None where there is neither."""
        return None

    def alpha(self, parts: Parts) -> float | None:
        """The alpha by which ΔW is scaled, the rank where none is given; None without either."""
        if ALPHA in parts:
            return float(parts[ALPHA].item())
        rank = self.rank(parts)
        return float(rank) if self.has_alpha and rank is not None else None

    def ignores_alpha(self, parts: Parts) -> bool:
        """Whether alpha is without effect for parts of this form."""
        return False

    @abstractmethod
    def check(self, parts: Parts) -> Sides:
        """o and f of the layers that the parts can belong to. Raises PartError for shapes that don't fit each other."""

    def check_fits(self, parts: Parts, layer: Layer) -> None:
        """Raises PartError if the parts, which passed `check`, do not belong to a layer of this size."""
        sides, expected = self.check(parts), layer_sides(layer)
        if sides not in (expected, (None, None)):
            raise PartError(
                self.main_part(parts),
                f"makes a {sides[0]} x {sides[1]} matrix, expected {expected[0]} x {expected[1]}. {OTHER_BASE}",
            )

    def main_part(self, parts: Parts) -> str:
        """The part that a message about the adapter's sizes names."""
        return next(part for part in (*self.main_parts, *parts) if part in parts)

    def single_on_inputs(self, parts: Parts) -> bool:
        """Whether a single magnitude, of shape `[1, 1]`, is that of the only input and not of the only output."""
        return False

    def on_convolution(self, parts: Parts) -> bool:
        """Whether the parts say that the layer is a convolution; they need not say it."""
        return False

    # Forms

    def normal(self, parts: Parts) -> dict[str, Tensor]:
        """The one form in which the program knows them, for the same ΔW. They passed `check`. Raises PartError."""
        return dict(parts)

    def weight_like(self, parts: Parts) -> Tensor | None:
        """A part with as many axes as the layer's weight, inputs on the second; None if there is none."""
        return None

    def for_layer(self, parts: Parts, layout: AdapterLayout, layer: Layer) -> Parts:
        """The form in which a format wants them, as far as it depends on the layer."""
        return parts

    def written(self, parts: Parts, layout: AdapterLayout) -> dict[str, Tensor]:
        """The parts that stand in a file of a format, under their names there."""
        return {part: tensor for part, tensor in parts.items() if part not in self.internal}

    def unfold_alpha(self, parts: Parts, alpha: Tensor) -> dict[str, Tensor]:
        """Parts whose weights hold alpha, with alpha beside them. Only for kinds with `folds_alpha`."""
        raise NotImplementedError(self.name)

    def in_kernels(self, parts: Parts) -> bool:
        """Whether factors are in the form that only OneTrainer writes, see `onetrainer_kernels`."""
        return False

    # Rotations of inputs

    def in_layout(self, parts: Parts, layer: Layer, told: bool | None) -> tuple[Parts, bool]:
        """Parts that say which of `two_layouts` they have on this layer, and whether that was left open.

        Args:
            parts: as read; they passed `check_fits`.
            layer: the layer.
            told: what the file says: whether whole kernels are meant; None if it does not say.
        """
        return parts, False

    def turns_kernels(self, parts: Parts) -> bool:
        """Whether the parts say that whole kernels are turned."""
        return False

    def turned_back(self, parts: Parts) -> Parts:
        """The inverse of a rotation; for a kind that peft turns the other way."""
        return parts

    # Fused layers

    def row_parts(self, parts: Parts) -> list[str]:
        """The parts that are cut along the outputs where a layer is cut. Each piece gets all others whole."""
        return []

    def row_axis(self, part: str, parts: Parts) -> int:
        """The axis of such a part along which outputs run."""
        return 0

    def rows_of_unit(self, part: str, parts: Parts) -> int:
        """How many outputs one row of such a part stands for."""
        return 1

    def rank_factors(self, parts: Parts) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Factors `[o, r]` whose rows are outputs, and `[r, f]` on inputs; None where ranks can't be told apart."""
        return None

    def join(self, pieces: Sequence[Parts | None], rows: Sequence[int]) -> dict[str, Tensor] | None:
        """The adapter of several layers that are stacked on their outputs, for kinds without `rank_factors`.

        Args:
            pieces: parts of each layer, without magnitudes or with them; None for a layer without adapter.
            rows: outputs of each layer.

        Returns:
            None if no kind of this form can be joined.

        Raises:
            PartError: these can't be.
        """
        return None

    def tied_outputs(self, parts: Parts) -> int:
        """How many outputs at a time are mixed with each other, so that they must stay together."""
        return 1

    # What can be told

    def singular_values(self, parts: Parts) -> Tensor | None:
        """Singular values of ΔW without alpha/rank and magnitudes, `[n]`, float64; None if the parts say too little."""
        return None

    def up_factor(self, parts: Parts) -> Tensor | None:
        """The factor on the outputs, `[o, r(, 1, 1)]`; None for a kind without one."""
        return None

    def remark(self, parts: Parts) -> str:
        """What else can be said of a layer; may be empty."""
        return ""

    def network_arguments(self, layers: Sequence[Parts]) -> dict[str, str]:
        """What LyCORIS was told beside algorithm and sizes, for the same layers."""
        return {}

    # Other programs

    def comfy_remark(self, dora: str) -> str:
        """Why stock ComfyUI can't apply it and what to do, two sentences; empty if it can."""
        return "it does not know this kind. Set portable_copy."

    def known_to_onetrainer(self, dora: str) -> bool:
        """Whether OneTrainer has this kind."""
        return False

    def onetrainer_remark(self, dora: str, refused: int) -> str:
        """On which conditions OneTrainer goes on from it; empty if on none.

        Args:
            dora: see above.
            refused: convolutions whose form OneTrainer does not know, see `two_layouts`.
        """
        return ""


def layer_sides(layer: Layer) -> tuple[int, int]:
    """o and f of a layer: not by the weight's shape, as a quantized weight may be packed."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return layer.out_features, layer.in_features


def factor(parts: Parts, part: str) -> Tensor:
    """A part that is a matrix or a kernel. Raises PartError if it has fewer axes."""
    if parts[part].dim() < 2:
        raise PartError(part, f"has the shape {list(parts[part].shape)}, expected a matrix or a kernel.")
    return parts[part]


def product_sides(parts: Parts, left: str, right: str, core: str) -> tuple[int, int]:
    """The sides of left `[o, r]` times right `[r, f]`, or of Tucker's form with a core.

    There left is `[r, o]`, right `[r, i]` and the core `[r, r, kh, kw]`. Raises PartError if they don't fit each other.
    """
    a, b = factor(parts, left), factor(parts, right)
    if core not in parts:
        if a[0].numel() != b.shape[0]:
            raise PartError(left, f"has the shape {list(a.shape)}, expected [outputs, {b.shape[0]}].")
        return a.shape[0], b[0].numel()
    kernel = parts[core]
    if kernel.dim() < 3 or kernel.shape[:2] != (a.shape[0], b.shape[0]):
        raise PartError(core, f"has the shape {list(kernel.shape)}, expected the ranks of both factors.")
    return a.shape[1], b.shape[1] * kernel[0, 0].numel()
