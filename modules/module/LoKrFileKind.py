from collections.abc import Sequence

from modules.module.AdapterLayout import AdapterLayout
from modules.module.factored_svd import singular_values
from modules.module.FileKind import ALPHA, FileKind, Parts, factor, product_sides
from modules.module.lokr_form import T2, W1, W1_A, W1_B, W2, W2_A, W2_B
from modules.module.magnitude import DORA_SCALE

import torch
from torch import Tensor


class LoKrFileKind(FileKind):
    """LoKr, also with DoRA; the shapes are those of `lokr_form`. Rows are tied: a row of w1 stands for o2 outputs."""

    name = "LoKr"
    own = frozenset({W1, W1_A, W1_B, W2, W2_A, W2_B, T2})
    beside = frozenset({ALPHA, DORA_SCALE})
    refused = frozenset({"lokr_t1"})
    peft_parameters = (r"lokr_\w+",)
    has_alpha = True
    factors = (W1, W1_A, W1_B, W2, W2_A, W2_B)
    main_parts = (W2, W2_B)
    adds = True
    output_option = "lokr_dora_on_output"
    algorithm = "lokr"

    def needed(self, parts: Parts) -> list[str]:
        return ([W1] if W1 in parts else [W1_A, W1_B]) + ([W2] if W2 in parts else [W2_A, W2_B])

    def rank(self, parts: Parts) -> int | None:
        return next((parts[part].shape[0] for part in (W2_B, W1_B) if part in parts), None)

    def ignores_alpha(self, parts: Parts) -> bool:
        return W1 in parts and W2 in parts

    def check(self, parts: Parts) -> tuple[int, int]:
        (o1, f1), (o2, f2) = (
            (factor(parts, whole).shape[0], parts[whole][0].numel())
            if whole in parts
            else product_sides(parts, left, right, core)
            for whole, left, right, core in ((W1, W1_A, W1_B, "no core"), (W2, W2_A, W2_B, T2))
        )
        return o1 * o2, f1 * f2

    def single_on_inputs(self, parts: Parts) -> bool:
        first = parts[W1 if W1 in parts else W1_A].shape[:1]
        second = parts[W2].shape[:1] if W2 in parts else parts[W2_A].shape[T2 in parts : (T2 in parts) + 1]
        return (*first, *second) != (1, 1)

    def written(self, parts: Parts, layout: AdapterLayout) -> dict[str, Tensor]:
        return super().written(parts if layout.cores else without_core(parts), layout)

    def row_parts(self, parts: Parts) -> list[str]:
        return [W1 if W1 in parts else W1_A]

    def rows_of_unit(self, part: str, parts: Parts) -> int:
        if part not in (W1, W1_A):
            return 1
        return parts[W2].shape[0] if W2 in parts else parts[W2_A].shape[1 if T2 in parts else 0]

    def singular_values(self, parts: Parts) -> Tensor | None:
        """Those of a Kronecker product are the products of each with each; a kernel only permutes columns."""
        if T2 in parts:
            return None
        first, second = (
            torch.linalg.svdvals(parts[whole].double().flatten(1))
            if whole in parts
            else singular_values(parts[right], parts[left])
            for whole, left, right in ((W1, W1_A, W1_B), (W2, W2_A, W2_B))
        )
        return torch.outer(first, second).flatten()

    def network_arguments(self, layers: Sequence[Parts]) -> dict[str, str]:
        if not any(W2 in parts for parts in layers):
            return {}
        return {"full_matrix": str(all(W2 in parts for parts in layers))}

    def comfy_remark(self, dora: str) -> str:
        return ""

    def known_to_onetrainer(self, dora: str) -> bool:
        return True


def without_core(parts: Parts) -> dict[str, Tensor]:
    """Parts in Tucker's form -> the same w2 as a product of two matrices of the same rank; others as they are.

    w2[o, i, h, w] = Σ a[p, o]·core[p, q, h, w]·b[q, i] is aᵀ times (core·b) `[r, i·h·w]`.
    """
    result = dict(parts)
    if T2 in result:
        inner = torch.einsum("pqhw,qi->pihw", result.pop(T2).float(), parts[W2_B].float())
        result |= {W2_A: parts[W2_A].t().contiguous(), W2_B: inner.flatten(1)}
    return result
