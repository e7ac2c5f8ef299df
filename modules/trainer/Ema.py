from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def restored(parameters: Sequence[torch.nn.Parameter], device: torch.device | None = None) -> Iterator[None]:
    """Whatever the block does to the parameters, they hold exactly their own values after it.

    Args:
        parameters: any number.
        device: where those values wait; None for each parameter's own device.
    """
    own = [parameter.detach().to(device or parameter.device, copy=True) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, own, strict=True):
                parameter.copy_(value)


class Ema:
    """Exponential moving average of parameters: a ← d·a + (1 − d)·p every `interval` steps.

    d = min(`decay`, (1 + n)/(10 + n)) after n updates, so that the average forgets the first weights quickly.

    Args:
        parameters: what is averaged.
        decay: 0 … 1, nearer to 1 averages longer.
        interval: steps between two updates.
        device: where the average lives; None for each parameter's own device.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], decay: float, interval: int, device: torch.device | None
    ) -> None:
        self.parameters, self.decay, self.interval, self.device = list(parameters), decay, interval, device
        self.averages = [p.detach().to(device or p.device, torch.float32, copy=True) for p in self.parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` (counted from 1) in, if it is one of the interval's."""
        if step % self.interval:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.detach().to(average.device, torch.float32), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters hold the average inside the block, and exactly their own values after it."""
        with restored(self.parameters, self.device):
            with torch.no_grad():
                for parameter, average in zip(self.parameters, self.averages, strict=True):
                    parameter.copy_(average)
            yield

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"updates": self.updates, **{str(index): value for index, value in enumerate(self.averages)}}

    def fresh_state(self) -> dict[str, Tensor | int]:
        """The state of an average that begins at the parameters as they are now."""
        return {"updates": 0, **{str(index): p.detach() for index, p in enumerate(self.parameters)}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.updates = int(state["updates"])
        for index, average in enumerate(self.averages):
            average.copy_(state[str(index)])
