"""The shapes of LoKr's factors: ΔW = s·kron(w1, w2), each factor whole or of low rank.

Axes: `o = o1·o2` out, `i = i1·i2` in (per group of a convolution), `h w` kernel, `r` rank. w1 is `[o1, i1]`, w2 is
`[o2, i2]` or `[o2, i2, h, w]`. Of low rank they are `w*_a [·, r]` times `w*_b [r, ·]`, where w2_b has i2·h·w columns;
in Tucker's form w2 is Σ t2[p, q, h, w]·w2_a[p, o2]·w2_b[q, i2].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from modules.util.UserError import UserError

import torch
from torch import Tensor

W1, W1_A, W1_B = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
W2, W2_A, W2_B, T2 = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"


@dataclass(frozen=True)
class LoKrForm:
    """Sizes of the factors.

    Attributes:
        left: (o1, i1).
        right: (o2, i2).
        kernel: (h, w), empty for linear layers.
        left_rank: of w1, None if it is whole.
        right_rank: of w2, None if it is whole.
        tucker: w2 has a core.
    """

    left: tuple[int, int]
    right: tuple[int, int]
    kernel: tuple[int, ...]
    left_rank: int | None
    right_rank: int | None
    tucker: bool

    @property
    def rank(self) -> int | None:
        """The rank by which alpha is divided, as ComfyUI has it; None if both factors are whole: alpha is ignored."""
        return self.right_rank or self.left_rank

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Part name -> shape of the trained tensor."""
        (o1, i1), (o2, i2), r1, r2 = self.left, self.right, self.left_rank, self.right_rank
        shapes: dict[str, tuple[int, ...]] = {W1: (o1, i1)} if r1 is None else {W1_A: (o1, r1), W1_B: (r1, i1)}
        if r2 is None:
            return shapes | {W2: (o2, i2, *self.kernel)}
        if self.tucker:
            return shapes | {T2: (r2, r2, *self.kernel), W2_A: (r2, o2), W2_B: (r2, i2)}
        return shapes | {W2_A: (o2, r2), W2_B: (r2, i2 * math.prod(self.kernel))}


def form_of_options(
    shape: torch.Size, rank: int, factor: int, decompose_both: bool, full_matrix: bool, tucker: bool
) -> LoKrForm:
    """The form that the options ask for, by LyCORIS' rules.

    A factor is of low rank if the rank is less than half its longer side, w1 only with `decompose_both`, and none with
    `full_matrix`. The core is for kernels larger than 1 x 1.

    Args:
        shape: of the layer's weight.
        rank: at least 1.
        factor: wanted size of w1's sides, -1 for sides about as long as w2's.
    """
    (o1, o2), (i1, i2) = factorization(shape[0], factor), factorization(shape[1], factor)
    low_left = decompose_both and not full_matrix and 2 * rank < max(o1, i1)
    low_right = not full_matrix and 2 * rank < max(o2, i2)
    has_core = tucker and low_right and math.prod(shape[2:]) > 1
    return LoKrForm(
        (o1, i1), (o2, i2), tuple(shape[2:]), rank if low_left else None, rank if low_right else None, has_core
    )


def form_of_parts(parts: Mapping[str, Tensor], shape: torch.Size) -> LoKrForm:
    """The form of a file's tensors.

    Args:
        parts: by part name.
        shape: of the layer's weight.

    Raises:
        UserError: a factor is missing, or the sizes don't make up the layer.
    """
    for whole, left, right in ((W1, W1_A, W1_B), (W2, W2_A, W2_B)):
        if whole not in parts and (left not in parts or right not in parts):
            missing = next((part for part in (left, right) if part not in parts), whole)
            raise UserError(f"{missing if left in parts or right in parts else whole} is missing. Save it again.")
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    few = next((part for part in (W1, W1_A, W1_B, W2, W2_A, W2_B) if part in shapes and len(shapes[part]) < 2), None)
    if few:
        raise UserError(f"{few} has the shape {list(shapes[few])}, expected a matrix. Save the adapter again.")
    tucker = T2 in parts and W2 not in parts
    left_rank = None if W1 in parts else shapes[W1_B][0]
    right_rank = None if W2 in parts else shapes[W2_B][0]
    left = shapes[W1][:2] if W1 in parts else (shapes[W1_A][0], shapes[W1_B][1])
    o2 = shapes[W2][0] if W2 in parts else shapes[W2_A][1 if tucker else 0]
    i1 = left[1]
    i2 = shape[1] // i1 if i1 and shape[1] % i1 == 0 else 0
    form = LoKrForm((left[0], i1), (o2, i2), tuple(shape[2:]), left_rank, right_rank, tucker)
    if left[0] * o2 != shape[0] or not i2:
        raise UserError(
            f"lokr_w1 [{left[0]}, {i1}] and lokr_w2 [{o2}, …] make up no weight of the shape {list(shape)}. "
            "It was made for another base model."
        )
    return form


def factorization(size: int, factor: int) -> tuple[int, int]:
    """Two whole numbers, the smaller one first, whose product is `size`.

    The first is the factor or its counterpart if it divides the size; otherwise the largest divisor that is at most the
    factor and at most √size. A factor of -1 asks for the largest divisor up to √size.
    """
    if factor > 0 and size % factor == 0:
        first = min(factor, size // factor)
    else:
        limit = math.isqrt(size) if factor < 1 else min(factor, math.isqrt(size))
        first = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return first, size // first
