"""The arithmetic of OFT on plain tensors; it needs torch alone.

Axes: `o` out, `i` in, `k` blocks, `b` block size, `n = b(b−1)/2` numbers of a block. Rows of `oft_R.weight` are the
upper triangles of skew matrices Q, row by row. R = (I + Q)(I − Q)⁻¹ (Cayley), a rotation.

- `oft_R.weight` `[k, n]` rotates what goes into the layer: Linear W' = W·Rᵀ, Conv2d W' = W·R. A convolution is rotated
  either on its input channels or on whole kernels, the i·kh·kw numbers of an output, as OneTrainer has it. The number
  of blocks tells which, except for a single block that all share.
- `oft_blocks` `[k, b, b]`, Q = B − Bᵀ, rotates what comes out: W' = Rᵀ·W.
- `dora_scale` m beside either: W' = m·rotated(W)/‖W‖, with the norms that the rotation leaves alone: per output
  `[o, 1]` for a rotated input, per input `[1, i]` for a rotated output.

Strength s turns by s·Q, so that the weights are rotated, not mixed, at any strength: 0 does nothing, 1 is what was
trained, −1 turns back. Lengths change by 1 + s·(m/‖W‖ − 1).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def block_size(elements: int) -> int:
    """b with b(b−1)/2 = elements. Raises ValueError if there is none."""
    size = (1 + math.isqrt(1 + 8 * elements)) // 2
    if size < 2 or size * (size - 1) // 2 != elements:
        raise ValueError(f"oft_R.weight has rows of {elements} numbers, which are no triangle of a block")
    return size


def effective_weight(weight: Tensor, marker: Tensor | None) -> Tensor:
    """`oft_R.weight` as it enters Q, float32.

    A file of OneTrainer's with the marker `oft_R.scaled_oft` (true, or any number but 0) holds numbers that are to be
    divided by 2√(b − 1); without it they are what they are.
    """
    weight = weight.float()
    if marker is None or not bool(marker.ne(0).any()):
        return weight
    return weight / (2 * math.sqrt(block_size(weight.shape[-1]) - 1))


def skew_from_triangles(weight: Tensor) -> Tensor:
    """`[k, n]` -> Q `[k, b, b]`."""
    size = block_size(weight.shape[-1])
    rows, cols = torch.triu_indices(size, size, 1, device=weight.device)
    upper = weight.new_zeros(weight.shape[0], size, size)
    upper[:, rows, cols] = weight
    return upper - upper.transpose(1, 2)


def rotation(skew: Tensor, strength: float = 1.0, neumann: bool = False) -> Tensor:
    """R `[k, b, b]` of s·Q: exact, or I + 2Q + 2Q² + 2Q³ + Q⁴ as OneTrainer computes it with `oft_cayley_neumann`."""
    skew = skew.float() * strength
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    if neumann:
        second = skew @ skew
        return one + 2 * skew + 2 * second + 2 * skew @ second + second @ second
    # (I + Q) and (I − Q)⁻¹ commute, so that one solve gives their product
    return torch.linalg.solve(one - skew, one + skew)


def turns_kernels(shape: Sequence[int], rows: int, size: int, told: bool | None) -> bool:
    """Whether a rotation of inputs turns whole kernels of a weight of this shape; false where these are the channels.

    Args:
        shape: of the weight.
        rows: blocks in the file.
        size: b.
        told: what the file says. None, if it says nothing, means channels where both fit.
    """
    inputs, width = shape[1], math.prod(shape[1:])
    by_kernels = width > inputs and width % size == 0 and rows in (1, width // size)
    by_channels = inputs % size == 0 and rows in (1, inputs // size)
    # a shape does not tell the groups of a convolution, so that what only seems to fit is believed to no file that
    # says otherwise
    return by_kernels and (told is True or (told is None and not by_channels))


def rotated(weight: Tensor, turn: Tensor, side: str, kernels: bool | None = None) -> Tensor:
    """The layer's weight `[o, i]` or `[o, i, kh, kw]` with its inputs or outputs turned by R `[k or 1, b, b]`; float32.

    Args:
        weight: not changed.
        turn: R.
        side: "input" or "output".
        kernels: `told` of `turns_kernels`.

    Raises:
        ValueError: the blocks don't make up the side.
    """
    size, axis = turn.shape[-1], 0 if side == "output" else 1
    if side == "input" and turns_kernels(weight.shape, len(turn), size, kernels):
        rows = weight.float().flatten(1)
        turn = turn.to(weight.device).expand(rows.shape[1] // size, size, size)
        split = rows.unflatten(1, (-1, size))
        return torch.einsum("oki,kij->okj", split, turn).reshape(weight.shape)
    blocks, left = divmod(weight.shape[axis], size)
    if left or turn.shape[0] not in (1, blocks):
        width = math.prod(weight.shape[1:])
        if side == "input" and width > weight.shape[1]:
            raise ValueError(
                f"{turn.shape[0]} blocks of {size} make up neither the layer's {weight.shape[1]} input channels nor "
                f"the {width} numbers of its kernels; the adapter belongs to a layer of another size"
            )
        raise ValueError(
            f"{turn.shape[0]} blocks of {size} don't make up the layer's {weight.shape[axis]} {side}s; "
            "the adapter was made for another base model"
        )
    turn = turn.to(weight.device).expand(blocks, size, size)
    split = weight.float().unflatten(axis, (blocks, size))
    if side == "output":
        return torch.einsum("knm,kn...->km...", turn, split).flatten(0, 1)
    equation = "okj,kij->oki" if weight.dim() == 2 else "oki...,kij->okj..."
    return torch.einsum(equation, split, turn).flatten(1, 2)


def adapted(
    weight: Tensor,
    skew: Tensor,
    side: str,
    dora_scale: Tensor | None = None,
    strength: float = 1.0,
    neumann: bool = False,
    kernels: bool | None = None,
) -> Tensor:
    """The layer's weight with the whole adapter in it, float32.

    Args:
        weight: `[o, i]` or `[o, i, kh, kw]`; not changed.
        skew: Q `[k or 1, b, b]`.
        side: "input" or "output".
        dora_scale: m, `[o, 1(, 1, 1)]` for the input side, `[1, i(, 1, 1)]` for the output side; None without DoRA.
        strength: s, see above.
        neumann: approximates R as the training did.
        kernels: `told` of `turns_kernels`.
    """
    result = rotated(weight, rotation(skew.to(weight.device), strength, neumann), side, kernels)
    if dora_scale is None:
        return result
    kept = 0 if side == "input" else 1
    lengths = [1] * weight.dim()
    lengths[kept] = weight.shape[kept]
    if dora_scale.numel() != weight.shape[kept]:
        raise ValueError(f"dora_scale has the shape {list(dora_scale.shape)}, expected {lengths}")
    scale = dora_scale.to(weight.device).float().reshape(lengths)
    others = [axis for axis in range(weight.dim()) if axis != kept]
    norm = torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)
    # a row of zeros stays one, whatever its length should be
    tiny = torch.finfo(torch.float32).tiny
    return result * (1 + strength * (scale / norm.clamp(min=tiny) - 1))
