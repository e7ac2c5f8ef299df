from collections.abc import Callable, Sequence

from modules.util.keyed_random import step_generator
from modules.util.ParameterInfo import get_parameter_info
from scaled_optim.roles import PER_ROW, ROLES, WHOLE

import torch
from torch import Tensor, nn

# The first spike comes after the warm-up.
FIRST, EVERY = 6, 4
SIZE = 30.0
# role -> the dimension along which its units lie, whatever stand-in an optimizer is given later
UNIT_DIMENSIONS = {name: 0 if role.unit == PER_ROW else 1 for name, role in ROLES.items() if role.unit != WHOLE}


class NoisyUnit:
    """Spikes in the gradient of one unit of each parameter: the first rank of a LoRA's factors, the first block of OFT.

    In every `EVERY`-th step Gaussian noise comes on top, `SIZE` times as long as the unit's own gradient. All other
    units get the gradient that they would have got.

    Args:
        parameters: trained tensors with `ParameterInfo`; those whose role has no units are left aside.
        seed: of the noise.
        noisy: whether there are spikes; otherwise only the clean gradients are kept.

    Attributes:
        coming: number of the step whose gradients come next, from 0; whoever steps counts it on.
        clean: parameter -> its last gradient without noise.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], seed: int, noisy: bool) -> None:
        self.seed, self.noisy = seed, noisy
        self.coming = 0
        self.clean: dict[nn.Parameter, Tensor] = {}
        self.units = {p: unit_of(p) for p in parameters if unit_of(p) is not None}
        for place, (parameter, dim) in enumerate(self.units.items()):
            parameter.register_hook(self._spoiled(parameter, place, dim))

    def spikes_in(self, step: int) -> bool:
        """Whether step number `step` is one with spikes, or would be."""
        return step >= FIRST and (step - FIRST) % EVERY == 0

    def _spoiled(self, parameter: nn.Parameter, place: int, dim: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            self.clean[parameter] = gradient
            if not self.noisy or not self.spikes_in(self.coming):
                return gradient
            spoiled = gradient.clone()
            unit = spoiled.select(dim, 0)
            noise = torch.randn(unit.shape, generator=step_generator(self.seed, "spike", self.coming, place))
            noise = noise.to(unit)
            unit.add_(noise, alpha=float(SIZE * unit.norm() / noise.norm()))
            return spoiled

        return hook


def unit_of(parameter: nn.Parameter) -> int | None:
    """The dimension along which a parameter's units lie; None: it has none, or only one."""
    info = get_parameter_info(parameter)
    dim = UNIT_DIMENSIONS.get(str(info.role)) if info is not None else None
    return dim if dim is not None and parameter.shape[dim] > 1 else None
