from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scaled_optim.shards import as_part_of, is_shard, local_part, part_of

import torch
from torch import Tensor

# Of values that are converted or brought elsewhere at once: enough for few launches, too little to count as memory.
CHUNK_BYTES = 64 << 20


@contextmanager
def restored(parameters: Sequence[torch.nn.Parameter], device: torch.device | None = None) -> Iterator[None]:
    """Whatever the block does to the parameters, they hold exactly their own values after it.

    Args:
        parameters: any number.
        device: where those values wait; None for each parameter's own device.
    """
    parameters = [local_part(parameter) for parameter in parameters]
    own = [torch.empty_like(parameter, device=device, requires_grad=False) for parameter in parameters]
    _copy(own, parameters)
    try:
        yield
    finally:
        _copy(parameters, own)


class Ema:
    """Exponential moving average of parameters: a ← d·a + (1 − d)·p every `interval` steps.

    d = min(`decay`, (1 + n)/(10 + n)) after n updates, so that the average forgets the first weights quickly.

    Args:
        parameters: what is averaged. Of those that processes hold in parts each averages its own.
        decay: 0 … 1, nearer to 1 averages longer.
        interval: steps between two updates.
        device: where the average lives; None for each parameter's own device.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], decay: float, interval: int, device: torch.device | None
    ) -> None:
        self.decay, self.interval, self.device = decay, interval, device
        self._whole = list(parameters)
        self.parameters = [local_part(parameter) for parameter in self._whole]
        self.averages = [
            torch.empty_like(p, dtype=torch.float32, device=device, requires_grad=False) for p in self.parameters
        ]
        _copy(self.averages, self.parameters)
        self.updates = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` (counted from 1) in, if it is one of the interval's."""
        if step % self.interval:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for averages, parameters in _chunks(self.averages, self.parameters):
            values = [value.float() for value in _brought(parameters, averages[0].device)]
            torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters hold the average inside the block, and exactly their own values after it."""
        with restored(self.parameters, self.device):
            _copy(self.parameters, self.averages)
            yield

    def state_dict(self) -> dict[str, Tensor | int]:
        averages = map(as_part_of, self.averages, self._whole)
        return {"updates": self.updates, **{str(index): value for index, value in enumerate(averages)}}

    def fresh_state(self) -> dict[str, Tensor | int]:
        """The state of an average that begins at the parameters as they are now."""
        return {"updates": 0, **{str(index): p.detach() for index, p in enumerate(self._whole)}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.updates = int(state["updates"])
        known = [state[str(index)] for index in range(len(self.averages))]
        parts = [
            local_part(value) if is_shard(value) else part_of(value, like)
            for value, like in zip(known, self._whole, strict=True)
        ]
        _copy(self.averages, parts)


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source into its target."""
    for some_targets, some_sources in _chunks(targets, sources):
        torch._foreach_copy_(some_targets, _brought(some_sources, some_targets[0].device))


def _chunks(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Pairs in order, up to `CHUNK_BYTES` at once; those of a chunk have the same devices and dtypes."""
    chunk: tuple[list[Tensor], list[Tensor]] = ([], [])
    size, kind = 0, None
    for target, source in zip(targets, sources, strict=True):
        own = (target.device, target.dtype, source.device, source.dtype)
        if chunk[0] and (own != kind or size + target.nbytes > CHUNK_BYTES):
            yield chunk
            chunk, size = ([], []), 0
        chunk[0].append(target)
        chunk[1].append(source)
        size, kind = size + target.nbytes, own
    if chunk[0]:
        yield chunk


def _brought(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The values of tensors on a device. From another one they come as one copy, for which the host waits once."""
    values = [tensor.detach() for tensor in tensors]
    if values[0].device == device:
        return values
    pieces = torch.cat([value.flatten() for value in values]).to(device).split([value.numel() for value in values])
    return [piece.view(value.shape) for piece, value in zip(pieces, values, strict=True)]
