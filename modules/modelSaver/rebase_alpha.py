"""Another alpha, or another rank, for a trained adapter."""

from collections.abc import Mapping

from modules.modelSaver.adapter_kinds import alpha_of, kind_of_parts, rank_of
from modules.modelSaver.low_rank_copy import best_lora_of_factors
from modules.module.FileKind import ALPHA
from modules.module.LoRAFileKind import DOWN, MID, UP

import torch
from torch import Tensor


def rebase_alpha(parts: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """One layer's adapter with another alpha and the same ΔW.

    ΔW = (α/r)·(product of d factors), so that every factor is multiplied by (α_old/α_new)^(1/d): all of them alike,
    which keeps their balance, and which is what training with the other alpha would have led to (see
    `modules/tool/rebase_config.py`). d depends on the kind and form, see `FileKind.factors`. A DoRA's scale stays.

    Args:
        parts: of one layer, by internal name.
        alpha: more than 0.

    Returns:
        All parts; the factors in float32. Equal to `parts` where readers ignore alpha, see `FileKind.ignores_alpha`.

    Raises:
        ValueError: alpha is not above 0, the adapter's own is not, or the adapter is of a kind without alpha.
    """
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha: found {alpha:g}, expected a number above 0")
    kind, old = kind_of_parts(parts), alpha_of(parts)
    file_kind = kind.file_kind
    if file_kind.ignores_alpha(parts):
        return dict(parts)
    if not file_kind.has_alpha or old is None:
        raise ValueError(f"a {kind} adapter has no alpha; its strength is in its weights alone")
    if not 0 < old < float("inf"):
        # all factors are multiplied alike, which makes neither a minus nor, from zero, any number
        raise ValueError(f"alpha: found {old:g} in the adapter, expected a number above 0")
    factors = [part for part in file_kind.factors if part in parts]
    each = (old / alpha) ** (1 / len(factors))
    rebased = {part: tensor.float() * each if part in factors else tensor for part, tensor in parts.items()}
    return rebased | {ALPHA: torch.tensor(float(alpha))}


def resize_lora(parts: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """One layer's LoRA with another rank: the best approximation, or the same ΔW if the rank is not below its own.

    The scale alpha/rank stays what it was, so that alpha shrinks with the rank. Where the rank is not smaller,
    nothing changes: zeros would make the file larger and train badly.

    Args:
        parts: of one layer, by internal name; LoRA or DoRA. A DoRA keeps its scale, so that its error is that of the
            direction.
        rank: at least 1.

    Returns:
        The parts, and the relative error of ΔW (before a DoRA's scale).
    """
    assert DOWN in parts and UP in parts and MID not in parts, sorted(parts)
    old = rank_of(parts)
    if rank >= old:
        return dict(parts), 0.0
    down, up, error = best_lora_of_factors(parts[DOWN], parts[UP], rank)
    scale = alpha_of(parts) / old
    new = down.shape[0]
    return dict(parts) | {DOWN: down, UP: up, ALPHA: torch.tensor(scale * new)}, error
