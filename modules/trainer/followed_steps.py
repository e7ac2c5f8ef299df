"""Steps of an optimizer on tensors without numbers, of which only those are followed that differ in memory."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from modules.util.WithoutNumbers import HeldMemory
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.ParameterBatch import ParameterBatch

import torch


def follow_each_kind_once(optimizer: torch.optim.Optimizer, memory: HeldMemory) -> None:
    """From now on an optimizer of ours really steps only the first two stacks of a kind; of others, the peak counts.

    Parameters of one batch have the same shape, format and options, and stacks of as many of them the same
    temporaries; all weights of a large model have more than a million operations in one step, but only some tens of
    kinds. The first stack of a kind may make what later ones find, so that it is the second that is remembered.

    Args:
        optimizer: any; those of libraries are left alone.
        memory: that counts what the steps make.
    """
    if not isinstance(optimizer, BatchedOptimizer):
        return
    step_run, known, seen = optimizer._step_run, {}, Counter()

    def followed(batches: Sequence[ParameterBatch], start: int, stop: int) -> None:
        kind = _kind(optimizer, batches, start, stop)
        if kind in known:
            memory.peak = max(memory.peak, memory.held + known[kind])
            for batch in batches:
                batch.steps[start:stop] = [batch.steps[start] + 1] * (stop - start)
                for parameter in batch.parameters[start:stop]:
                    optimizer._waiting.pop(parameter, None)
            return
        held, peak = memory.held, memory.peak
        memory.peak = held
        step_run(batches, start, stop)
        seen[kind] += 1
        if seen[kind] == 2:
            known[kind] = memory.peak - held
        memory.peak = max(peak, memory.peak)

    optimizer._step_run = followed


def _kind(optimizer: BatchedOptimizer, batches: Sequence[ParameterBatch], start: int, stop: int) -> tuple:
    """What the memory of a step depends on. Large weights are one batch each, so that equal batches must be equal."""
    kind: list[Any] = [stop - start]
    for batch in batches:
        kind += [
            batch.rule.name,
            batch.role.name,
            batch.shape,
            id(batch.group),
            batch.partner_shape,
            batch.partner is None,
        ]
        kind += [batch.steps[start], stop - start == len(batch)]
        for parameter in batch.parameters[start:stop]:
            gradient = optimizer._gradient(parameter)
            kind += [gradient.shape, gradient.stride(), gradient.dtype, parameter.dtype]
    return tuple(kind)
