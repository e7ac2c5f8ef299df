from collections.abc import Collection, Mapping
from typing import Any

from modules.module.AdapterModule import AdaptedLayer
from modules.module.dense_weight import weight_shape
from modules.module.LoRAModule import ALPHA, DOWN, UP, LoRAModule
from modules.module.magnitude import DORA_SCALE, PEFT_MAGNITUDE, low_rank_change, magnitude_of
from modules.module.MagnitudeMixin import MagnitudeMixin
from modules.util.config.TrainConfig import TrainConfig

import torch
from torch import Tensor


class DoRAModule(MagnitudeMixin, LoRAModule):
    """DoRA: W' = m⊙(W + ΔW)/‖W + ΔW‖, ΔW as in LoRA (arXiv 2402.09353); see `MagnitudeMixin`.

    Args:
        output_axis: the magnitude is per output instead of per input.
        norm_epsilon: adds float32's epsilon, 1.2e-7, to the norms.

    The other arguments are those of `LoRAModule`.
    """

    part_names = {DOWN: "down", UP: "up", ALPHA: "alpha", DORA_SCALE: "magnitude"}

    def __init__(
        self,
        layer: AdaptedLayer,
        component: str,
        layer_name: str,
        *,
        output_axis: bool = False,
        norm_epsilon: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(layer, component, layer_name, **options)
        self.start_magnitude(layer, output_axis, norm_epsilon)

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        magnitude = {
            "output_axis": config.lora_decompose_output_axis,
            "norm_epsilon": config.lora_decompose_norm_epsilon,
        }
        return super().own_arguments(layer, config, seed) | magnitude

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return super().recognizes(names) and (DORA_SCALE in names or PEFT_MAGNITUDE in names)

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        _, output_axis = magnitude_of(parts, weight_shape(layer))
        return super().options_of(parts, layer) | {"lora_decompose": True, "lora_decompose_output_axis": output_axis}

    def direction(self) -> Collection[Tensor]:
        return self.down, self.up, self.alpha

    def squared_norm_change(self) -> Tensor:
        return low_rank_change(self.layer, self.down, self.up, self.scale, self.output_axis)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_scaled_outputs(self._low_rank_forward(x, self.on_scaled_inputs(), merge=False))

    def delta_weight(self) -> Tensor:
        return self.with_magnitude(super().delta_weight())

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """As LoRA's, and the magnitude: `dora_scale` of either axis, or peft's on the output axis."""
        super().load_parts(self.load_magnitude(parts, "lora_decompose_output_axis"))
