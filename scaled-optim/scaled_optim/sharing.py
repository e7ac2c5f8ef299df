"""Several processes that step together: each a part of the parameters, or its rows of each parameter."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from scaled_optim.ParameterBatch import ParameterBatch
from scaled_optim.shards import gathered, group_of, local_part, scatter
from scaled_optim.statistics import RoleStatistics

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Sharing:
    """Which process steps which batch, and how the others get the result.

    Batches stay as they are in a single process, so results are the same to the bit. Each goes to the process that has
    the fewest elements so far. A LoRA's two factors stay together where a rule steps both. Of parameters that are
    DTensors, batches come together in their owners in turns, one in each process, and go back as rows; those of rules
    that look at each number by itself stay where they are.

    Args:
        group: the processes; None: all there are.
        replicated: whether parameters that every process has whole are shared out, too.

    Raises:
        ValueError: torch.distributed is not in use.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, replicated: bool = True) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("shared: found no processes, expected torch.distributed to be in use. Set it to false.")
        self.group, self.replicated = group or dist.group.WORLD, replicated
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        # what is saved goes over the host: GPUs may have no room for the state of all
        on_host = "gloo" in dist.get_backend_config(self.group) and not torch.cuda.is_available()
        ranks = dist.get_process_group_ranks(self.group)
        self._host = self.group if on_host else dist.new_group(ranks, backend="gloo")
        self._elements = [0] * self.size

    @classmethod
    def over_shards(cls, parameters: Sequence[nn.Parameter], known: "Sharing | None") -> "Sharing | None":
        """What the processes need that hold some of the parameters in parts; `known` where there are none of those.

        Raises:
            ValueError: they are divided in a way that can't be stepped.
        """
        group = group_of(parameters)
        if group is None:
            return known
        if known is None:
            return cls(group, replicated=False)
        if dist.get_process_group_ranks(known.group) != dist.get_process_group_ranks(group):
            raise ValueError("shared: found DTensors over other processes than those that share the optimizer.")
        return known

    def owner(self, elements: int) -> int:
        """The process of a new batch of so many elements. To be asked in the same order in all processes."""
        rank = self._elements.index(min(self._elements))
        self._elements[rank] += elements
        return rank

    # -- steps --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def exchange(self, batches: Iterable[ParameterBatch]) -> None:
        """Brings what each process has stepped to all others: every parameter that has a gradient is sent once."""
        stepped: dict[tuple[int, torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
        for batch in batches:
            if batch.owner is None or batch.sharded:
                continue
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

    def rounds(self, batches: Sequence[ParameterBatch]) -> Iterator[list[ParameterBatch]]:
        """Batches that are stepped at once: those that need no exchange, then one for each owner at a time."""
        yield [batch for batch in batches if batch.owner is None or not batch.sharded]
        queues: dict[int, list[list[ParameterBatch]]] = defaultdict(list)
        for batch in batches:
            if batch.owner is not None and batch.sharded and (batch.partner is None or batch.leads):
                queues[batch.owner].append([batch] if batch.partner is None else [batch, batch.partner])
        for turn in range(max(map(len, queues.values()), default=0)):
            yield [batch for own in queues.values() if turn < len(own) for batch in own[turn]]

    @torch.no_grad()
    def bring(self, batches: Sequence[ParameterBatch]) -> None:
        """Puts in place what is stepped of the batches of a round: whole matrices in their owners, rows elsewhere."""
        for batch in batches:
            if not batch.sharded:
                continue
            if batch.owner is None:
                batch.stand_ins = {p: _with_gradient(local_part(p).detach(), p.grad) for p in batch.parameters}
                continue
            batch.stand_ins = None
            present = [p for p in batch.parameters if p.grad is not None]
            partner = batch.partner
            if not present and (partner is None or all(p.grad is None for p in partner.parameters)):
                continue
            values = gathered(batch.parameters, batch.owner, self.group)
            gradients = gathered([p.grad for p in present], batch.owner, self.group) if present else None
            if values is None:
                continue
            batch.stand_ins = dict(zip(batch.parameters, values, strict=True))
            for parameter, gradient in zip(present, gradients or [], strict=True):
                batch.stand_ins[parameter].grad = gradient

    @torch.no_grad()
    def take_back(self, batches: Sequence[ParameterBatch]) -> None:
        """Brings what owners have stepped to the processes that hold its rows."""
        for batch in batches:
            stepped, batch.stand_ins = batch.stand_ins, None
            if batch.owner is None or not batch.sharded:
                continue
            present = [p for p in batch.parameters if p.grad is not None]
            if present:
                scatter(stepped and [stepped[p] for p in present], present, batch.owner, self.group)

    def add_up(self, totals: Mapping[str, Tensor], batches: Iterable[ParameterBatch]) -> None:
        """Sums of all parameters' shares in tensors of one share for each, of which a process has those it stepped."""
        everywhere = [batch.places for batch in batches if batch.owner is None and not batch.sharded]
        for values in totals.values():
            if values.ndim:
                if everywhere and self.rank:
                    values.index_fill_(0, torch.cat(everywhere), 0)
                dist.all_reduce(values, group=self.group)

    def counts(self, batch: ParameterBatch) -> bool:
        """Whether steps of a batch here count for statistics: those that all processes take count once."""
        return batch.owner is not None or batch.sharded or not self.rank

    def joined(self, statistics: Mapping[str, RoleStatistics]) -> dict[str, RoleStatistics]:
        """The statistics of all processes by role. To be called in all of them."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, {role: own.on_host() for role, own in statistics.items()}, group=self._host)
        sums: dict[str, RoleStatistics] = {}
        for each in found:
            for role, own in each.items():
                sums.setdefault(role, RoleStatistics()).join(own)
        return sums

    # -- state --------------------------------------------------------------------------------------------------------

    def start_values(self, owner: int, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
        """DTensors of one shape as a whole in the process that owns them, None in the others."""
        return gathered(parameters, owner, self.group)

    def whole_state(self, batches: Iterable[ParameterBatch]) -> dict[int, dict[str, Any]] | None:
        """The state of all parameters by place in the first process, None in the others; one batch after the other."""
        state: dict[int, dict[str, Any]] = {}
        for batch in batches:
            places = batch.places.tolist()
            mine = {place: _on_host(batch.state_of(index)) for index, place in enumerate(places)}
            if batch.owner == 0 or (batch.owner is None and not batch.sharded):
                state |= mine
                continue
            found: list[Any] | None = [None] * self.size if self.rank == 0 else None
            sent = mine if batch.owner in (None, self.rank) else None
            dist.gather_object(sent, found, group_dst=0, group=self._host)
            if found is None:
                continue
            if batch.owner is not None:
                state |= found[batch.owner]
            else:
                state |= {place: batch.joined([each[place] for each in found]) for place in places}
        return dict(sorted(state.items())) if self.rank == 0 else None


def _with_gradient(value: Tensor, gradient: Tensor | None) -> Tensor:
    value.grad = None if gradient is None else local_part(gradient)
    return value


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return {key: _on_host(item) for key, item in value.items()} if isinstance(value, dict) else value
