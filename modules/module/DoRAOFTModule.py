from collections.abc import Collection, Mapping
from typing import Any

from modules.module.AdapterModule import AdaptedLayer
from modules.module.dense_weight import dense_weight, weight_shape
from modules.module.magnitude import DORA_SCALE, magnitude_shape, norms_of, squared_norms
from modules.module.OFTModule import OFTModule
from modules.module.part_checks import without_trailing_ones
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole

import torch
from torch import Tensor, nn


class DoRAOFTModule(OFTModule):
    """OFT with a magnitude (DoRA, arXiv 2402.09353): W' = m·R(W)/‖W‖, R(W) the weight as `OFTModule` rotates it.

    m belongs to the axis that the rotation leaves alone: input side per output, `dora_scale` `[o, 1(, 1, 1)]`;
    output side per input, `[1, i(, 1, 1)]`. A rotation does not change the norms on that axis, so ‖W‖ is the base's
    own and is computed once; `lora_decompose_output_axis`, which chooses the axis for LoRA, has no say here. (With
    `neumann` the norms of R(W) are off by as little as R is from a rotation, and m means the same.) m starts at ‖W‖,
    so nothing changes.

    Args:
        layer: the frozen layer.
        component: the layer's, for names.
        layer_name: module path inside the component.
        norm_epsilon: adds float32's epsilon to ‖W‖, so that zero rows have a norm to divide by.
        options: as for `OFTModule`.
    """

    part_names = OFTModule.part_names | {DORA_SCALE: "magnitude"}
    decomposes = True

    def __init__(
        self, layer: AdaptedLayer, component: str, layer_name: str, *, norm_epsilon: bool = True, **options: Any
    ) -> None:
        super().__init__(layer, component, layer_name, **options)
        norm = norms_of(squared_norms(layer, output_axis=not self._output), norm_epsilon)
        # float32 whatever the dtype of the rotation, as the weight would change by the rounding
        self.magnitude = nn.Parameter(norm.clone())
        self.register_buffer("norm", norm, persistent=False)
        self.describe(self.magnitude, ParameterRole.DORA_SCALE, DORA_SCALE)

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        return super().own_arguments(layer, config, seed) | {"norm_epsilon": config.lora_decompose_norm_epsilon}

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return super().recognizes(names) and DORA_SCALE in names

    def delta_weight(self) -> Tensor:
        weight = dense_weight(self.layer).to(self.weight.device)
        factors = (self.magnitude / self.norm).view(self._shape())
        return self._turned(weight) * factors - weight

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """As `OFTModule.load_parts`, and `dora_scale`, whose trailing ones may be missing."""
        if DORA_SCALE not in parts:
            raise self.part_error(f"{DORA_SCALE} is missing. Switch lora_decompose off, or save the file again.")
        found, wanted = parts[DORA_SCALE], self._shape()
        if without_trailing_ones(found.shape) != wanted[:2] and found.shape != (max(wanted),):
            raise self.part_error(
                f"{DORA_SCALE} has the shape {list(found.shape)}, expected {list(wanted)}: a rotation of "
                f"{'outputs' if self._output else 'inputs'} has a magnitude on the other axis only. "
                "Start a fresh adapter."
            )
        super().load_parts({name: part for name, part in parts.items() if name != DORA_SCALE})
        self.magnitude.copy_(parts[DORA_SCALE].flatten())

    def parts(self) -> dict[str, Tensor]:
        return super().parts() | {DORA_SCALE: self.magnitude.detach().view(self._shape())}

    def _factors(self) -> tuple[Tensor | None, Tensor | None]:
        excess = (self.magnitude - self.norm) / self.norm
        if not self._output:
            return None, excess
        groups = 1 if self._linear else self.layer.groups
        return excess.repeat(groups), None

    def _shape(self) -> tuple[int, ...]:
        """Of `dora_scale` in files."""
        return magnitude_shape(weight_shape(self.layer), output_axis=not self._output)
