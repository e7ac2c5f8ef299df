from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

from modules.module.AdapterModule import AdaptedLayer, AdapterModule
from modules.module.dense_weight import dense_weight, weight_shape
from modules.module.magnitude import (
    DORA_SCALE,
    PEFT_MAGNITUDE,
    full_precision,
    magnitude_of,
    magnitude_shape,
    norms_of,
    scaled_outputs,
    squared_norms,
)
from modules.module.part_checks import fitted, for_layer
from modules.util.enum.ParameterRole import ParameterRole
from scaled_optim.shards import is_shard

import torch
from torch import Tensor, nn


class MagnitudeMixin(AdapterModule):
    """A magnitude m beside an adapter's ΔW: W' = m⊙(W + ΔW)/‖W + ΔW‖ (DoRA, arXiv 2402.09353).

    The norm is a constant for the gradient (section 4.3 there). It is that of the weight's columns, one per input, as
    OneTrainer has it (input axis, m is `[1, i(, 1, 1)]`), or of its rows, one per output, as peft has it (output axis,
    m is `[o, 1(, 1, 1)]`). With c = m/‖W + ΔW‖ the input axis scales the layer's input, the output axis its output
    without bias: W' is never formed, see `magnitude`. m starts as ‖W‖, so that c is exactly 1. It is float32 whatever
    the dtype of the adapter's other tensors, as W would change by its rounding.

    The norms are computed once per forward of the component, for the weights at that time. An adapter whose component
    did not run since its weights changed computes its own, each time.

    Attributes:
        has_magnitude: a kind may leave that open; without it nothing here has an effect.
        magnitude: m.
        output_axis: m is per output instead of per input.
        norm_epsilon: float32's epsilon, 1.2e-7, is added to the norms.
    """

    magnitude: nn.Parameter
    has_magnitude = False
    output_axis = False
    norm_epsilon = True
    _prepared: tuple[Any, Tensor] | None = None

    @abstractmethod
    def direction(self) -> Collection[Tensor]:
        """The tensors on which ΔW depends."""

    @abstractmethod
    def squared_norm_change(self) -> Tensor:
        """‖W + ΔW‖² − ‖W‖² of each weight vector, float32, `[i]` or `[o]`. Runs without gradient and autocast."""

    def start_magnitude(self, layer: AdaptedLayer, output_axis: bool, norm_epsilon: bool) -> None:
        """Gives the adapter a magnitude, which starts as the norms of the layer's weight."""
        self.has_magnitude, self.output_axis, self.norm_epsilon = True, output_axis, norm_epsilon
        # moves with the adapter; no part of its state, as it belongs to the layer
        self.register_buffer("_squares", squared_norms(layer, output_axis), persistent=False)
        start = norms_of(self._squares, norm_epsilon)
        self.magnitude = nn.Parameter(start.view(magnitude_shape(weight_shape(layer), output_axis)))
        self.describe(self.magnitude, ParameterRole.DORA_SCALE, DORA_SCALE)

    @classmethod
    @torch.no_grad()
    def prepare(cls, adapters: Sequence[Self]) -> None:
        for adapter in adapters:
            # a layer that waits elsewhere, or that processes hold in parts, is here only while it is called: then the
            # norms are computed
            weight = adapter.layer.weight
            if adapter.has_magnitude and weight.device == adapter.magnitude.device and not is_shard(weight):
                adapter._prepared = adapter._direction_key(), adapter._norms()

    def on_scaled_inputs(self) -> Tensor | None:
        """c for each of the layer's inputs; None if there is no magnitude, or one of outputs."""
        if not self.has_magnitude or self.output_axis:
            return None
        groups = self.layer.groups if isinstance(self.layer, nn.Conv2d) else 1
        return self._factors() if groups == 1 else self._factors().repeat(groups)

    def with_scaled_outputs(self, y: Tensor) -> Tensor:
        """`y`, the layer's output with W + ΔW, each output multiplied by its c if there is one."""
        if not self.has_magnitude or not self.output_axis:
            return y
        factors, bias = self._factors(), self.layer.bias
        if isinstance(self.layer, nn.Conv2d):
            factors, bias = factors.view(-1, 1, 1), None if bias is None else bias.view(-1, 1, 1)
        return scaled_outputs(y, factors, bias)

    def with_magnitude(self, delta: Tensor) -> Tensor:
        """W' − W for a ΔW; differentiable. Without a magnitude that is ΔW."""
        if not self.has_magnitude:
            return delta
        base = dense_weight(self.layer).to(self.magnitude.device)
        return self._factors().view_as(self.magnitude) * (base + delta) - base

    @torch.no_grad()
    def load_magnitude(self, parts: Mapping[str, Tensor], option: str) -> dict[str, Tensor]:
        """Takes over `dora_scale` of the adapter's axis, or peft's magnitude, and gives back the other parts.

        Raises:
            UserError: it is missing or of another shape, or on the other axis than the config's `option` says.
        """
        with for_layer(self):
            magnitude, output_axis = magnitude_of(parts, weight_shape(self.layer))
        if output_axis != self.output_axis:
            raise self.part_error(
                f"its magnitude is per {'output' if output_axis else 'input'}. "
                f"Set {option} to {str(output_axis).lower()}."
            )
        if magnitude.numel() != self.magnitude.numel():
            magnitude = fitted(self, magnitude, self.magnitude, DORA_SCALE)
        self.magnitude.copy_(magnitude.reshape(self.magnitude.shape))
        return {name: tensor for name, tensor in parts.items() if name not in (DORA_SCALE, PEFT_MAGNITUDE)}

    def _factors(self) -> Tensor:
        """c = m/‖W + ΔW‖, `[i]` or `[o]`, float32; differentiable in m."""
        # a compiled graph can't ask for a tensor's version
        prepared = None if torch.compiler.is_compiling() else self._prepared
        with torch.no_grad():
            norms = prepared[1] if prepared and prepared[0] == self._direction_key() else self._norms()
        return self.magnitude.float().view(-1) / norms

    def _norms(self) -> Tensor:
        """‖W + ΔW‖ of each weight vector, `[i]` or `[o]`, float32."""
        with full_precision(self.magnitude.device):
            return norms_of(self._squares + self.squared_norm_change(), self.norm_epsilon)

    def _direction_key(self) -> tuple[Any, ...]:
        """Changes when the tensors on which ΔW depends do."""
        return tuple((tensor._version, tensor.data_ptr()) for tensor in self.direction())
