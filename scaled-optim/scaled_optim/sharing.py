"""Several processes with the same parameters and gradients, each of which steps a part of the parameters."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from scaled_optim.ParameterBatch import ParameterBatch

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Sharing:
    """Which process steps which batch, and how the others get the result.

    Batches stay as they are in a single process, so results are the same to the bit. Each goes to the process that has
    the fewest elements so far. A LoRA's two factors stay together where a rule steps both.

    Args:
        group: the processes; None: all there are.

    Raises:
        ValueError: torch.distributed is not in use.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("shared: found no processes, expected torch.distributed to be in use. Set it to false.")
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # what is saved goes over the host: GPUs may have no room for the state of all
        on_host = "gloo" in dist.get_backend_config(group) and not torch.cuda.is_available()
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._host = group if on_host else dist.new_group(ranks, backend="gloo")
        self._elements = [0] * self.size

    def owner(self, elements: int) -> int:
        """The process of a new batch of so many elements. To be asked in the same order in all processes."""
        rank = self._elements.index(min(self._elements))
        self._elements[rank] += elements
        return rank

    @torch.no_grad()
    def exchange(self, batches: Iterable[ParameterBatch]) -> None:
        """Brings what each process has stepped to all others: every parameter that has a gradient is sent once."""
        stepped: dict[tuple[int, torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
        for batch in batches:
            for parameter in batch.parameters:
                if parameter.grad is not None and parameter.numel():
                    stepped[batch.owner, parameter.dtype, parameter.device].append(parameter)
        for (owner, *_), parameters in stepped.items():
            self._send(owner, parameters)

    def _send(self, owner: int, parameters: Sequence[nn.Parameter]) -> None:
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        dist.broadcast(flat, group_src=owner, group=self.group)
        if owner != self.rank:
            parts = flat.split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.copy_(part.view(parameter.shape))

    def whole_state(self, own: dict[int, dict[str, Any]], held: set[int]) -> dict[int, dict[str, Any]] | None:
        """The state of all parameters in the first process, None in the others.

        Args:
            own: place of a parameter -> its state, as far as this process has it.
            held: places of the parameters that it steps.
        """
        mine = {place: _on_host(state) for place, state in own.items() if place in held}
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(mine, found, group_dst=0, group=self._host)
        if found is None:
            return None
        return own | {place: state for each in found for place, state in each.items()}


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return {key: _on_host(item) for key, item in value.items()} if isinstance(value, dict) else value
