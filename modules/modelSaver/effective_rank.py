"""Effective rank of an adapter's layers: how many directions the up factor B and the change B·A really use.

erank(M) = exp(−Σ pᵢ·ln pᵢ) with pᵢ = σᵢ/Σσ, between 1 and the rank (Roy and Vetterli, "The effective rank", EUSIPCO
2007). Scales as alpha/rank cancel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from modules.modelSaver.adapter_kinds import file_kind_of, rank_of
from modules.modelSaver.AdapterFile import AdapterFile
from modules.module.kinds import file_kinds
from modules.util.UserError import UserError

import torch
from torch import Tensor

NOTHING = "–"


@dataclass(frozen=True)
class LayerRank:
    """Of one layer.

    Attributes:
        rank: what the factors allow; None for kinds without factors.
        up: effective rank of B, in [1, rank], 0 for zeros; None for kinds without a B.
        product: effective rank of the change of the weights (for a DoRA, of the product B·A within it), likewise; None
            where the file alone does not tell it.
    """

    rank: int | None
    up: float | None
    product: float | None


@dataclass(frozen=True)
class FileRanks:
    """Of one adapter file.

    Attributes:
        path: of the file.
        kind: of the adapter, in words.
        layers: by layer name, in the file's order.
    """

    path: str
    kind: str
    layers: Mapping[str, LayerRank]

    def mean(self, field: str) -> float | None:
        """Mean of `rank`, `up` or `product` over the layers that have it."""
        known = [value for layer in self.layers.values() if (value := getattr(layer, field)) is not None]
        return fmean(known) if known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path, "kind": self.kind,
            "mean": {field: self.mean(field) for field in ("rank", "up", "product")},
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
        }  # fmt: skip


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of normalised singular values, see above; 0 for a zero matrix.

    Args:
        values: singular values, `[n]`, at least 0.
    """
    total = values.sum()
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))


@torch.no_grad()
def factor_values(parts: Mapping[str, Tensor]) -> Tensor | None:
    """Singular values of what a layer's factors multiply to, float64, without scales as alpha/rank.

    Args:
        parts: internal part name -> tensor; the magnitude of a DoRA is left aside.

    Returns:
        `[n]`; None for kinds whose factors say too little, as rotations.
    """
    return file_kind_of(parts).singular_values(parts)


def ranks_of_file(file: AdapterFile) -> FileRanks:
    """Effective ranks of every layer.

    Raises:
        UserError: an adapter whose change of the weights can't be told without the base model.
    """
    layers = {name: _layer_rank(parts) for name, parts in file.layers.items()}
    ranks = FileRanks(str(file.path), str(file.kind), layers)
    if ranks.mean("product") is None:
        raise UserError(
            f"{file.path}: is {file.kind}, whose change of the weights depends on the base model; expected "
            f"{_kinds_told()}. For one number a layer: scripts/convert_adapter.py {file.path} --info --base MODEL."
        )
    return ranks


def rank_table(files: Sequence[FileRanks]) -> str:
    """Files side by side: rank, effective rank of B and of B·A of each layer, and the means in the last line.

    Layers are matched by the names that the files give them; files of different formats have none in common.
    """
    names = list(dict.fromkeys(name for file in files for name in file.layers))
    fields = ("rank", "up", "product")
    head = ["layer", *(title for _ in files for title in ("rank", "B", "B·A"))]
    body = [
        [name, *(_cell(getattr(file.layers.get(name), field, None)) for file in files for field in fields)]
        for name in names
    ]
    mean = [f"mean of {len(names)}", *(_cell(file.mean(field)) for file in files for field in fields)]
    widths = [max(len(row[column]) for row in (head, *body, mean)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    lines = [line(head), *(line(row) for row in body), line(mean)]
    if len(files) > 1:
        lines = [*(f"file {number}: {file.path} ({file.kind})" for number, file in enumerate(files, 1)), "", *lines]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return NOTHING
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _kinds_told() -> str:
    """The kinds whose change of the weights the parts tell, in words."""
    names = [name for kind in file_kinds() if kind.adds for name in (kind.name, kind.dora_name) if name]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _layer_rank(parts: Mapping[str, Tensor]) -> LayerRank:
    values = factor_values(parts)
    factor = file_kind_of(parts).up_factor(parts)
    up = None if factor is None else effective_rank(torch.linalg.svdvals(factor.double().flatten(1)))
    return LayerRank(
        rank=None if values is None else rank_of(parts), up=up,
        product=None if values is None else effective_rank(values),
    )  # fmt: skip
