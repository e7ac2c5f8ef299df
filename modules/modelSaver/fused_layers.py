"""One adapter for several layers that a file stacks on their outputs, such as a fused qkv: taken apart, put together.

The stacked weight is W = [W₁; W₂; …] (rows are outputs). Both directions are exact: ΔW of the fused layer is the stack
of the layers' own. Where that can't be, as the kind ties the layers together, it is refused.

Axes: `o` out, `i` in, `r` rank, `b` block size.
"""

from collections.abc import Sequence

from modules.modelSaver.adapter_kinds import AdapterKind, kind_of_parts, rank_of, scale_of
from modules.module.FileKind import ALPHA, PartError, Parts
from modules.module.magnitude import DORA_SCALE
from modules.util.AdapterNaming import FusedLayer

import torch
from torch import Tensor


def take_apart(parts: Parts, group: FusedLayer) -> list[dict[str, Tensor] | None]:
    """Adapter of a file's layer -> one for each of the model's layers that it stands for, see `split_layer`."""
    return [swap_halves(parts, group.rows[0])] if group.swapped else split_layer(parts, group.rows)


def put_together(pieces: Sequence[Parts | None], group: FusedLayer) -> dict[str, Tensor]:
    """Adapters of the model's layers, None where there is none -> that of the file's layer. Raises PartError."""
    return swap_halves(pieces[0], group.rows[0]) if group.swapped else join_layers(pieces, group.rows)


def joins_exactly(kind: AdapterKind) -> bool:
    """Whether adapters of this kind, each trained on its own layer, can be joined: they do not tie rows together."""
    return kind.dora != "input" and kind.file_kind.joins


def stands_alone(kind: AdapterKind, group: FusedLayer) -> bool:
    """Whether an adapter of one of the group's layers means the same under the layer's own name.

    A reader that exchanges halves of ΔW leaves a magnitude of outputs as it is, and rotates outputs in its own order.
    """
    return not (group.swapped and (kind.dora == "output" or kind.file_kind.turns_outputs))


def swap_halves(parts: Parts, rows: int) -> dict[str, Tensor]:
    """The adapter of a layer whose two halves of outputs are exchanged; its own inverse.

    Args:
        parts: in normal form.
        rows: outputs of the layer, an even number.

    Raises:
        PartError: the kind ties rows of both halves together.
    """
    kind = kind_of_parts(parts)
    result = dict(parts)
    for part in _row_parts(parts, kind):
        axis = kind.file_kind.row_axis(part, parts)
        count = parts[part].shape[axis]
        if count % 2:
            raise PartError(part, f"has {count} rows, which can't be divided between the layer's two halves.")
        result[part] = parts[part].roll(count // 2, axis)
    if rows // 2 % kind.file_kind.tied_outputs(parts):
        raise PartError(
            kind.file_kind.main_part(parts),
            f"turns outputs of both halves together; {rows // 2} is no multiple of its block.",
        )
    return result


def split_layer(parts: Parts, rows: Sequence[int]) -> list[dict[str, Tensor] | None]:
    """Adapter of a fused layer -> one for each of its layers, with the same ΔW on their rows.

    Where several adapters were put side by side, each layer gets its own ranks back, and None if it had no adapter.

    Args:
        parts: in normal form.
        rows: outputs of each layer, in order.

    Raises:
        PartError: other rows, or a kind that ties the layers together.
    """
    kind = kind_of_parts(parts)
    _refuse_inputs(kind, "can't be taken apart exactly")
    result: list[dict[str, Tensor]] = [dict(parts) for _ in rows]
    for part in _row_parts(parts, kind):
        tensor = parts[part]
        unit, axis = kind.file_kind.rows_of_unit(part, parts), kind.file_kind.row_axis(part, parts)
        if tensor.shape[axis] * unit != sum(rows):
            raise PartError(part, f"stands for {tensor.shape[axis] * unit} outputs, expected {sum(rows)}.")
        if any(count % unit for count in rows):
            raise PartError(part, f"works on {unit} outputs at once, which does not divide the layers' {list(rows)}.")
        pieces = tensor.split([count // unit for count in rows], dim=axis)
        for target, piece in zip(result, pieces, strict=True):
            target[part] = piece.contiguous()
    factors = kind.file_kind.rank_factors(parts)
    return result if factors is None else _with_own_ranks(result, *factors)


def _with_own_ranks(
    pieces: Sequence[dict[str, Tensor]], outers: Sequence[str], inners: Sequence[str]
) -> list[dict[str, Tensor] | None]:
    """The layers without ranks that only others among them use; the scale stays. None for a layer that uses none.

    A layer with a magnitude is kept whole then, and so are all of an adapter that was never trained.
    """
    # [r] for each layer: whether any of its outputs takes anything from the rank
    used = [torch.cat([piece[name].transpose(0, 1).flatten(1) for name in outers], 1).any(1) for piece in pieces]
    by_nobody = ~torch.stack(used).any(0)
    result = []
    for piece, own in zip(pieces, used, strict=True):
        kept = own | by_nobody
        if kept.all() or (not kept.any() and DORA_SCALE in piece):
            result.append(dict(piece))
        elif not own.any() and DORA_SCALE not in piece:
            result.append(None)
        else:
            fewer = {name: piece[name][:, kept].contiguous() for name in outers}
            fewer |= {name: piece[name][kept].contiguous() for name in inners}
            if ALPHA in piece:
                fewer[ALPHA] = piece[ALPHA].float() * (int(kept.sum()) / len(kept))
            result.append({**piece, **fewer})
    return result


def _row_parts(parts: Parts, kind: AdapterKind) -> list[str]:
    """The parts that are cut along the outputs; each layer gets all others whole."""
    return ([DORA_SCALE] if kind.dora == "output" else []) + kind.file_kind.row_parts(parts)


def join_layers(pieces: Sequence[Parts | None], rows: Sequence[int]) -> dict[str, Tensor]:
    """Adapters of several layers -> that of the layer in which they are stacked.

    Layers that share their input-side factors keep sharing them, which undoes `split_layer`. Others are put side by
    side: the rank of the result is the sum of theirs.

    Args:
        pieces: parts of each layer in normal form, None for a layer without adapter. At least one has some.
        rows: outputs of each layer, in order.

    Raises:
        PartError: a kind that can't be joined exactly.
    """
    present = [parts for parts in pieces if parts is not None]
    kind = kind_of_parts(present[0])
    if any(kind_of_parts(parts) != kind for parts in present):
        raise PartError(min(present[0]), "can't be joined with an adapter of another kind.")
    _refuse_inputs(kind, "can't be joined exactly")
    if kind.dora and len(present) < len(pieces):
        raise PartError(DORA_SCALE, "is needed for every layer of a fused one. Train all of them.")
    fused = {DORA_SCALE: torch.cat([parts[DORA_SCALE].float() for parts in present])} if kind.dora else {}
    factors = kind.file_kind.rank_factors(present[0])
    joined = kind.file_kind.join(pieces, rows) if factors is None else _join_low_rank(pieces, rows, *factors)
    if joined is None:
        raise PartError(min(present[0]), f"can't be joined exactly, as {kind} ties rows together.")
    return fused | joined


def _join_low_rank(
    pieces: Sequence[Parts | None], rows: Sequence[int], outers: Sequence[str], inners: Sequence[str]
) -> dict[str, Tensor]:
    """Of low-rank kinds: factors whose rows are outputs (`outers`) and factors on the inputs (`inners`)."""
    present = [parts for parts in pieces if parts is not None]
    scales = [scale_of(parts) for parts in present]
    same_scale = all(scale == scales[0] for scale in scales)
    shared = same_scale and all(
        parts[name].shape == present[0][name].shape and torch.equal(parts[name], present[0][name])
        for parts in present
        for name in inners
    )
    fused: dict[str, Tensor] = {}
    if shared:
        rank = rank_of(present[0]) or 1
        fused |= {name: present[0][name] for name in inners}
        if any(ALPHA in parts for parts in present):
            fused[ALPHA] = torch.tensor(scales[0] * rank)
    else:
        rank = sum(rank_of(parts) or 1 for parts in present)
        fused |= {name: torch.cat([parts[name].float() for parts in present]) for name in inners}
        fused[ALPHA] = torch.tensor(scales[0] * rank if same_scale else float(rank))
    for name in outers:
        like = present[0][name]
        stacked = torch.zeros(sum(rows), rank, *like.shape[2:])
        row = column = 0
        filled = iter(zip(present, scales, strict=True))
        for parts, count in zip(pieces, rows, strict=True):
            if parts is not None:
                factor, scale = next(filled)
                width = factor[name].shape[1]
                # the scale goes into one factor only
                block = factor[name].float() * (1.0 if same_scale or name != outers[0] else scale)
                stacked[row : row + count, column : column + width] = block
                column += 0 if shared else width
            row += count
        fused[name] = stacked
    return fused


def _refuse_inputs(kind: AdapterKind, what: str) -> None:
    if kind.dora == "input":
        option = kind.file_kind.output_option
        first = f"{option} or " if option else ""
        raise PartError(DORA_SCALE, f"{what}: a magnitude on inputs belongs to all rows together. Choose {first}LoRA.")
