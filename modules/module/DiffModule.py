from collections.abc import Collection, Mapping
from typing import Any

from modules.module.AdapterModule import AdaptedLayer
from modules.module.DeltaModule import DeltaModule
from modules.module.dense_weight import weight_shape
from modules.module.DiffFileKind import DIFF, DIFF_BIAS, DiffFileKind
from modules.module.part_checks import check_names, fitted
from modules.util.enum.ParameterRole import ParameterRole

import torch
from torch import Tensor, nn


class DiffModule(DeltaModule):
    """A weight change as such: W' = W + diff, and for the bias b' = b + diff_b.

    Files hold it where a change has no other form that a program knows. No `peft_type` makes it, only such a file: it
    is there to be applied, merged and converted. It can be trained on, at the memory of full fine-tuning.

    Args:
        layer: the frozen layer.
        component: the layer's, for names.
        layer_name: module path inside the component.
        dropout: in [0, 1), share of the inputs of `diff` that are zeroed while training.
        dtype: of the trained tensors.
    """

    file_kinds = (DiffFileKind(),)
    part_names = {DIFF: DIFF}
    strength_parts = (DIFF, DIFF_BIAS)
    factored = False

    def __init__(
        self,
        layer: AdaptedLayer,
        component: str,
        layer_name: str,
        *,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(layer, component, layer_name, dropout)
        self.add(DIFF, DIFF, torch.zeros(weight_shape(layer), dtype=dtype), ParameterRole.HIDDEN)
        self._unmerged_bias: Tensor | None = None
        if layer.bias is not None:
            self.part_names = {DIFF: DIFF, DIFF_BIAS: DIFF_BIAS}
            self.add(DIFF_BIAS, DIFF_BIAS, torch.zeros(weight_shape(layer)[0], dtype=dtype), ParameterRole.VECTOR)

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return DIFF in names or DIFF_BIAS in names

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        return {}

    def factors(self) -> tuple[Tensor, ...]:
        return (self.diff,)

    def build(self, *factors: Tensor) -> Tensor:
        return factors[0].float()

    def forward(self, x: Tensor) -> Tensor:
        y = self.delta_forward(x)
        if DIFF_BIAS not in self.part_names:
            return y
        shift = self.diff_b.view(-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else self.diff_b
        return y + shift.to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        if DIFF_BIAS in self.part_names:
            self._unmerged_bias = self.layer.bias.clone()
            self.layer.bias.copy_(self.layer.bias.float() + self.diff_b.float().to(self.layer.bias.device))

    @torch.no_grad()
    def unmerge(self) -> None:
        super().unmerge()
        if self._unmerged_bias is not None:
            self.layer.bias.copy_(self._unmerged_bias)
            self._unmerged_bias = None

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over the changes; a missing one is zero."""
        check_names(self, parts, (), (DIFF, DIFF_BIAS), "a weight difference")
        if DIFF_BIAS in parts and DIFF_BIAS not in self.part_names:
            raise self.part_error(
                f"it holds {DIFF_BIAS}, but the layer has no bias. It was made for another base model."
            )
        for part, attribute in self.part_names.items():
            target = getattr(self, attribute)
            target.copy_(fitted(self, parts[part], target, part) if part in parts else torch.zeros_like(target))
