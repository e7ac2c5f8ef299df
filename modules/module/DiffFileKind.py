from collections.abc import Sequence

from modules.module.FileKind import FileKind, PartError, Parts, factor

import torch
from torch import Tensor

DIFF, DIFF_BIAS = "diff", "diff_b"


class DiffFileKind(FileKind):
    """A weight change as such: diff has the weight's shape, diff_b the bias's."""

    name = "diff"
    own = frozenset({DIFF, DIFF_BIAS})
    main_parts = (DIFF,)
    adds = True
    changes_biases = True
    joins = True
    algorithm = "full"

    def needed(self, parts: Parts) -> list[str]:
        return [DIFF]

    def check(self, parts: Parts) -> tuple[int, int]:
        delta = factor(parts, DIFF)
        if DIFF_BIAS in parts and parts[DIFF_BIAS].shape != delta.shape[:1]:
            raise PartError(DIFF_BIAS, f"has the shape {list(parts[DIFF_BIAS].shape)}, expected [{delta.shape[0]}].")
        return delta.shape[0], delta[0].numel()

    def weight_like(self, parts: Parts) -> Tensor | None:
        return parts[DIFF]

    def row_parts(self, parts: Parts) -> list[str]:
        return [part for part in (DIFF, DIFF_BIAS) if part in parts]

    def join(self, pieces: Sequence[Parts | None], rows: Sequence[int]) -> dict[str, Tensor] | None:
        present = [parts for parts in pieces if parts is not None]
        fused = {}
        for name in sorted({name for parts in present for name in parts}):
            like = next(parts[name] for parts in present if name in parts)
            fused[name] = torch.cat(
                [
                    parts[name].float() if parts is not None and name in parts else torch.zeros(count, *like.shape[1:])
                    for parts, count in zip(pieces, rows, strict=True)
                ]
            )
        return fused

    def singular_values(self, parts: Parts) -> Tensor | None:
        return torch.linalg.svdvals(parts[DIFF].double().flatten(1))

    def comfy_remark(self, dora: str) -> str:
        return ""
