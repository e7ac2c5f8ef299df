"""Parameters of which each process has some rows, as `torch.distributed.fsdp.fully_shard` leaves them.

Axes: `n` rows of a tensor's first axis, of which each process has a part; `k` tensors of one shape.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_shard(tensor: Any) -> bool:
    """Whether it is a DTensor, of which this process has a part."""
    # where nothing has imported it there is none, and importing it takes long
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, on the same memory; a tensor that is whole here is itself that."""
    return tensor.to_local() if is_shard(tensor) else tensor


def rows_of(rows: int, size: int) -> list[int]:
    """How many of `rows` each of `size` processes has: as torch divides them, the first ones the same number."""
    step = -(-rows // size)
    return [max(0, min(step, rows - rank * step)) for rank in range(size)]


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Those rows of a whole tensor that this process has of the parameter `like`; all of them where it has all."""
    if not is_shard(like):
        return whole
    mesh = like.device_mesh
    counts = rows_of(like.shape[0], mesh.size())
    first = sum(counts[: mesh.get_local_rank()])
    return whole[first : first + counts[mesh.get_local_rank()]]


def as_part_of(part: Tensor, like: Tensor) -> Tensor:
    """A DTensor of what this process has of something that is divided as the parameter `like`; `part`, if it is not."""
    if not is_shard(like):
        return part
    kind = type(like.data)
    return kind.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, in every process. To be called in all of them."""
    return tensor.full_tensor() if is_shard(tensor) else tensor.detach()


def group_of(parameters: Sequence[Tensor]) -> "dist.ProcessGroup | None":
    """The processes that hold the parameters in parts; None where each is whole.

    Raises:
        ValueError: they are divided otherwise than `fully_shard` does over one group.
    """
    found = None
    for parameter in parameters:
        if not is_shard(parameter):
            continue
        mesh, placements = parameter.device_mesh, parameter.placements
        if mesh.ndim != 1 or not placements[0].is_shard(0):
            raise ValueError(
                f"a DTensor: found it placed as {placements} over {mesh.ndim} axes of processes, expected rows over "
                "one axis, as fully_shard(model, mesh=…) places them."
            )
        if found is not None and mesh.get_group() != found:
            raise ValueError("a DTensor: found parameters over several groups of processes, expected one group.")
        found = mesh.get_group()
    return found


def gathered(tensors: Sequence[Tensor], owner: int, group: "dist.ProcessGroup") -> list[Tensor] | None:
    """The whole of `k` DTensors of one shape and dtype in the process that owns them, None in the others.

    To be called in all processes. Each sends its rows once.
    """
    rank, size, first = dist.get_rank(group), dist.get_world_size(group), tensors[0]
    counts = rows_of(first.shape[0], size)
    own = torch.stack([local_part(tensor) for tensor in tensors])
    buffer = own.new_zeros(len(tensors), counts[0], *first.shape[1:])
    buffer[:, : counts[rank]] = own
    parts = [torch.empty_like(buffer) for _ in range(size)] if rank == owner else None
    dist.gather(buffer, parts, group_dst=owner, group=group)
    if parts is None:
        return None
    joined = torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)
    return list(joined.unbind())


def scatter(values: Sequence[Tensor] | None, tensors: Sequence[Tensor], owner: int, group: "dist.ProcessGroup") -> None:
    """Writes whole values, which the owner has, to `k` DTensors of one shape and dtype. To be called in all processes.

    Args:
        values: of the owner; None in the others.
        tensors: what is written to.
        owner: number of the process in the group.
        group: of the tensors.
    """
    rank, size, first = dist.get_rank(group), dist.get_world_size(group), tensors[0]
    counts, parts = rows_of(first.shape[0], size), None
    own = [local_part(tensor) for tensor in tensors]
    if values is not None:
        stacked = torch.stack(list(values))
        room = stacked.new_zeros(len(tensors), size * counts[0], *first.shape[1:])
        room[:, : first.shape[0]] = stacked
        parts = [part.contiguous() for part in room.split(counts[0], dim=1)]
    got = own[0].new_empty(len(tensors), counts[0], *first.shape[1:])
    dist.scatter(got, parts, group_src=owner, group=group)
    torch._foreach_copy_(own, list(got[:, : counts[rank]].unbind()))
