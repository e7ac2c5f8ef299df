from abc import abstractmethod

from modules.module.AdapterModule import AdaptedLayer, AdapterModule
from modules.module.delta_layer import delta_layer
from modules.module.dense_weight import weight_shape
from modules.util.enum.ParameterRole import ParameterRole

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeltaModule(AdapterModule):
    """An adapter that is defined by its ΔW as a function of trained tensors, `build`; see `delta_layer`.

    In float32 the layer runs once, with W + ΔW. In half precision, where a small ΔW would drown in the rounding of the
    sum, and with dropout or a layer that isn't plain, it runs once as it is and once with ΔW.

    Args:
        dropout: in [0, 1), share of the adapter's inputs that are zeroed while training.
    """

    def __init__(self, layer: AdaptedLayer, component: str, layer_name: str, dropout: float) -> None:
        super().__init__(layer, component, layer_name)
        if not 0 <= dropout < 1:
            raise ValueError(f"expected 0 <= dropout < 1, found {dropout}")
        self.dropout = dropout

    @abstractmethod
    def factors(self) -> tuple[Tensor, ...]:
        """The trained tensors of which `build` makes ΔW."""

    @abstractmethod
    def build(self, *factors: Tensor) -> Tensor:
        """ΔW in the layer's weight shape, float32, of tensors like those of `factors`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.delta_forward(x)

    def delta_forward(self, x: Tensor) -> Tensor:
        """The layer's product with W + ΔW, and its bias."""
        layer, dtype = self.layer, self.compute_dtype(x)
        whole = dtype in (torch.float32, torch.float64) and layer.weight.dtype == dtype
        if not (self._plain and whole) or (self.dropout and self.training):
            y = self._original_forward(x)
            if self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            return y + delta_layer(x.to(y.dtype), layer, self.build, self.factors(), None, None)
        return delta_layer(x.to(dtype), layer, self.build, self.factors(), layer.weight, layer.bias)

    def delta_weight(self) -> Tensor:
        return self.build(*self.factors()).view(weight_shape(self.layer))

    def add(self, part: str, attribute: str, tensor: Tensor, role: ParameterRole) -> None:
        """Makes `tensor` a trained one on the layer's device, described for optimizers."""
        parameter = nn.Parameter(tensor.to(self.layer.weight.device))
        setattr(self, attribute, parameter)
        self.describe(parameter, role, part)
