from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scaled_optim.arithmetic import add_scaled_
from scaled_optim.codecs import Codec
from scaled_optim.kernels.Runner import Runner
from scaled_optim.noise import step_keys
from scaled_optim.roles import Role
from scaled_optim.Stack import Stack

import torch
from torch import Tensor

# Elements of a block on a CPU. Larger ones leave the cache between operations, smaller ones cost more calls. Measured
# as `batching.PAIRED_CHUNK`, 2^16, 2^18, 2^19, 2^22: LoRA-RITE 410, 369, 379, 402 ms; Stiefel-LoRA 333, 279, 270, 275.
BLOCK = 1 << 18


@dataclass(frozen=True)
class Slot:
    """One thing that is remembered for each parameter from step to step.

    Attributes:
        name: in `state_dict()`.
        codec: how it is stored; None for the few numbers or tensors that have a form of their own.
        signed: whether it has negative values.
        create: for a slot without codec, makes its tensors (each with leading axis b) from the stack's start values
            `[b, rows, cols]` and its noise keys `[b]`.
        later: whether older states, which are else the same, lack it; it is zero then.
    """

    name: str
    codec: Codec | None = None
    signed: bool = True
    create: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    later: bool = False


class StackStep:
    """One step of one stack: what rules and features read, and where they leave what they found.

    b parameters of one role and shape, `[b, rows, cols]`.

    Attributes:
        gradients, parameters: read as a stack or each by itself.
        g: gradients in the compute dtype; may be replaced, but not changed in place: they may be the caller's own.
        p: parameters before the step.
        shape: `(b, rows, cols)`.
        dtype: of the arithmetic.
        watched: whether anyone wants to know the step's direction.
        role: of all of them.
        options: of the rule, by config key.
        n: what changes from step to step: `lr`, `decay`, whether decay is paid in `portions` and this step `pays`,
            whether it was `noted` already or goes `through` the direction, and the rule's own; floats or 0-dim tensors,
            and bools.
        denominator: what an adaptive rule divided by, for Fisher decay; None if it has none.
        pull: what decay goes along for a distance `[b, rows, cols]`, for geometric decay; None: the distance itself.
        step: number of this step, from 1; a 0-dim tensor in a compiled step, so nothing may branch on it. `[b]` where
            parameters have had different numbers of steps, to which the rule gives the same `n`.
        first: whether it is the first; always a bool.
        kernel: whether the parameters are convolution kernels.
        places: `[b]` int64, where the parameters are among all of the optimizer's.
        totals: what a rule shares between all parameters.
        one_pass: whether torch's kernels may be used that do a whole rule at once; not in a compiled step.
        runner: launches kernels of our own; None: there are none.
        trial: tries them on steps like this one, see `kernels.trial`.
        rate: what the direction was multiplied with in the step, for statistics.
        size: what to multiply the step with, where scaling must not take it out again; None: nothing.
        beta2: the second moment's factor where it is not the option, for statistics.
        keys: `[b]` int32, of each parameter's random numbers.
        streams: of each slot's random numbers, see `noise`.
        partners: of LoRAs' factors, where the rule steps both together; to be read only, and before any step.
    """

    def __init__(
        self,
        gradients: Stack,
        parameters: Stack,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        role: Role,
        options: Mapping[str, Any],
        numbers: dict[str, Any],
        slots: Mapping[str, Slot],
        stores: Mapping[str, dict[str, Tensor]],
        keys: Tensor,
        step: int | Tensor,
        *,
        first: bool | None = None,
        kernel: bool = False,
        places: Tensor | None = None,
        totals: dict[str, Tensor] | None = None,
        one_pass: bool = False,
        watched: bool = False,
        runner: Runner | None = None,
        trial: Callable[..., str | None] | None = None,
    ) -> None:
        self.gradients, self.parameters, self.shape, self.dtype = gradients, parameters, shape, dtype
        self.role, self.options, self.n = role, options, numbers
        self.one_pass, self.watched, self.runner, self.trial = one_pass, watched, runner, trial
        self.step, self.first, self.kernel = step, step == 1 if first is None else first, kernel
        self.places, self.totals = places, totals
        self.denominator: Tensor | None = None
        self.size: Tensor | None = None
        self.pull: Callable[[Tensor], Tensor] | None = None
        self.rate: Any = None
        self.beta2: Tensor | None = None
        self.partners: Stack | None = None
        self.keys, self._slots, self._stores = keys, slots, stores
        self.streams = {name: stream for stream, name in enumerate(slots, start=1)}

    @property
    def g(self) -> Tensor:
        return self.gradients.value

    @g.setter
    def g(self, value: Tensor) -> None:
        self.gradients.replace(value)

    @property
    def p(self) -> Tensor:
        return self.parameters.value

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def elements(self) -> int:
        """Of one parameter."""
        return self.shape[1] * self.shape[2]

    @property
    def vector(self) -> bool:
        """Whether each parameter is a vector: by its role, or with one side of length 1."""
        return self.role.vector or min(self.shape[1:]) == 1

    def shrink_(self, factor: Any) -> None:
        """p ← factor·p."""
        if self.parameters.direct:
            torch._foreach_mul_(self.parameters.each(), factor.to(self.dtype) if isinstance(factor, Tensor) else factor)
        else:
            self.p.mul_(factor)

    def descend_(self, u: Tensor, rate: Any) -> None:
        """p ← p − rate·u, u `[b, rows, cols]`."""
        if self.parameters.direct:
            each = self.parameters.each()
            if isinstance(rate, Tensor):
                torch._foreach_addcmul_(each, self.parameters.views_of(u), [rate.to(u.dtype)] * len(each), value=-1)
            else:
                torch._foreach_add_(each, self.parameters.views_of(u), alpha=-rate)
        else:
            add_scaled_(self.p, u, -rate)

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of the stack that fit into cache, to be worked on one after the other. Results don't depend on them.

        In a compiled step, and on a GPU, it is one.
        """
        b = self.shape[0]
        size = max(1, BLOCK // self.elements) if self.one_pass and self.device.type == "cpu" else b
        return [(start, min(start + size, b)) for start in range(0, b, size)]

    def has(self, name: str) -> bool:
        return name in self._slots

    def codec_of(self, name: str) -> Codec | None:
        """How a slot is stored."""
        return self._slots[name].codec

    def read(self, name: str) -> Tensor:
        """A slot's value `[b, rows, cols]`. In fp32 it is the state itself: what is done in place is remembered."""
        return self._slots[name].codec.decode(self._stores[name], self.dtype)

    def write(self, name: str, value: Tensor) -> None:
        """Remembers a slot's value. `value` may be used on, unrounded, but not changed."""
        codec = self._slots[name].codec
        codec.encode(self._stores[name], value, self.noise(self.streams[name]) if codec.random else None)

    def store(self, name: str) -> dict[str, Tensor]:
        """The tensors of a slot that has a form of its own, to be changed in place."""
        return self._stores[name]

    def noise(self, stream: int) -> Tensor:
        """Keys `[b]` of this step's random numbers; every use has a stream of its own. 0 rounds the parameters."""
        return step_keys(step_keys(self.keys, stream), self.step)
