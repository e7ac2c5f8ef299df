"""What is inside an adapter file, layer by layer."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modules.modelSaver.adapter_kinds import alpha_of, file_kind_of, rank_of, scale_of
from modules.modelSaver.AdapterFile import AdapterFile
from modules.modelSaver.convert import deltas, file_without_scales
from modules.modelSaver.effective_rank import effective_rank, factor_values
from modules.module.magnitude import DORA_SCALE
from modules.util.ReferenceModel import ReferenceModel

import torch
from torch import Tensor

# longer metadata, as whole training configs, would bury the rest
SHOWN_METADATA = 100


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one layer's adapter.

    Attributes:
        name: as in the file.
        rank: of a low-rank adapter, block size of a rotation; None where there is neither.
        alpha: None for kinds without.
        norm: Frobenius norm of ΔW; None if it needs the base's weights or shapes.
        effective_rank: of ΔW, see `effective_rank.effective_rank`; None likewise.
        remark: what else can be said, may be empty.
    """

    name: str
    rank: int | None
    alpha: float | None
    norm: float | None = None
    effective_rank: float | None = None
    remark: str = ""


def inspect_adapter(file: AdapterFile, model: ReferenceModel | None = None) -> list[LayerFacts]:
    """Facts of every layer, in the file's order.

    Args:
        file: any kind.
        model: the base, for kinds whose ΔW can't be told from the file alone: its shapes, or (`needs_weights`)
            its weights.
    """
    full = _facts_by_delta(file, model) if model is not None else {}
    rows = []
    for name, parts in file.layers.items():
        norm, spread = full.get(name) or _facts_by_factors(parts) or (None, None)
        remark = file_kind_of(parts).remark(parts)
        if norm is None and model is None:
            remark = f"{remark}; norm: needs --base".removeprefix("; ")
        rows.append(LayerFacts(name, rank_of(parts), alpha_of(parts), norm, spread, remark))
    return rows


def info_text(file: AdapterFile, rows: Sequence[LayerFacts], model: ReferenceModel | None = None) -> str:
    """The report that `--info` prints: a summary, a table of the layers, unknown layers, metadata.

    Args:
        file: as read.
        rows: from `inspect_adapter`.
        model: whose layers count as known; None if nothing is known.
    """
    ranks, alphas = Counter(row.rank for row in rows), Counter(row.alpha for row in rows)
    dtypes = Counter(
        str(tensor.dtype).removeprefix("torch.") for parts in file.layers.values() for tensor in parts.values()
    )
    size = file.kind.file_kind.size_name
    lines = [
        f"{file.path}: {file.kind}, {len(rows)} layers, format {file.format}",
        f"  {size}: {_counted(ranks)}; alpha: {_counted(alphas)}; dtype: {_counted(dtypes)}",
        f"  base model: {model.name if model else 'unknown'}",
    ]
    norms = [row.norm for row in rows if row.norm is not None]
    if norms:
        lines.append(f"  norm of all changes: {math.hypot(*norms):.4g}")
    lines += ["", *_table(rows, size)]
    unknown = _unknown(file, model)
    if unknown:
        lines += ["", f"Layers that {model.name} lacks:", *(f"  {name}" for name in unknown)]
    if file.extra:
        lines += [
            "",
            "Tensors that belong to no layer:",
            *(f"  {key} {list(file.extra[key].shape)}" for key in file.extra),
        ]
    if file.metadata:
        lines += ["", "Metadata:", *(f"  {key}: {_short(value)}" for key, value in sorted(file.metadata.items()))]
    return "\n".join(lines)


def _table(rows: Sequence[LayerFacts], size: str) -> list[str]:
    head = ("layer", size, "alpha", "norm", "effective rank", "")
    body = [
        (
            row.name,
            "–" if row.rank is None else str(row.rank),
            "–" if row.alpha is None else f"{row.alpha:g}",
            "–" if row.norm is None else f"{row.norm:.4g}",
            "–" if row.effective_rank is None else f"{row.effective_rank:.1f}",
            row.remark,
        )
        for row in rows
    ]
    widths = [max(len(cells[column]) for cells in (head, *body)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        # names to the left, numbers to the right
        first = cells[0].ljust(widths[0])
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
        return "  ".join([first, *numbers, cells[-1]]).rstrip()

    return [line(head), *(line(cells) for cells in body)]


def _facts_by_factors(parts: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """Norm and effective rank of ΔW from factors alone; None for kinds of which they say too little."""
    values = None if DORA_SCALE in parts else factor_values(parts)
    if values is None:
        return None
    values = values * scale_of(parts)
    return torch.linalg.vector_norm(values).item(), effective_rank(values)


def _facts_by_delta(file: AdapterFile, model: ReferenceModel) -> dict[str, tuple[float, float]]:
    """The same by layer name of the file, for layers whose factors say too little, with the base."""
    if file.kind.needs_weights and not model.has_weights:
        return {}
    simple = {name for name, parts in file.layers.items() if _facts_by_factors(parts) is not None}
    if len(simple) == len(file.layers):
        return {}
    names = {place: name for name, place in model.naming.read.items() if name in file.layers}
    plain = file if model.has_weights else file_without_scales(file)
    found = {}
    for component, layer, delta in deltas(plain.fit(model.naming, model.components), model, bool(file.neumann)):
        name = names.get((component, layer))  # none for a slice of a fused layer
        if name is not None:
            # of the Gram matrix of the smaller side: much faster than an SVD, and exact enough to be looked at
            matrix = delta.double().flatten(1)
            gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
            values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
            found[name] = torch.linalg.vector_norm(matrix).item(), effective_rank(values)
    return found


def _unknown(file: AdapterFile, model: ReferenceModel | None) -> list[str]:
    if model is None:
        return []
    return [name for name in file.layers if name not in model.naming.read and name not in model.naming.fused]


def _counted(values: Counter) -> str:
    """The values, the most frequent first, with how often each occurs if there are several."""
    listed = [(("–" if value is None else f"{value:g}" if not isinstance(value, str) else value), count)
              for value, count in values.most_common()]  # fmt: skip
    if len(listed) == 1:
        return listed[0][0]
    return ", ".join(f"{value} ({count})" for value, count in listed)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_METADATA else f"{line[: SHOWN_METADATA - 1]}…"
