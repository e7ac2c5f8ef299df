from collections.abc import Callable

import torch
from torch import Tensor


class Stack:
    """Tensors of one shape, read as one stack `[b, rows, cols]` in the compute dtype, made when it is first asked for.

    What a single kernel can do to the tensors where they are costs less than copying them together and back.

    Args:
        tensors: of one shape and dtype.
        make: copies some of them into a stack; it may use the same memory each time.
        direct: whether they have the compute dtype and are contiguous, so that `each` may be themselves.
        contiguous: whether they are contiguous.
    """

    def __init__(
        self, tensors: list[Tensor], make: Callable[[list[Tensor]], Tensor], direct: bool, contiguous: bool
    ) -> None:
        self._tensors, self._make, self._direct, self.contiguous = tensors, make, direct, contiguous
        self._stack: Tensor | None = None

    @property
    def stacked(self) -> bool:
        """Whether the stack was made; from then on changes go into it, not into the tensors."""
        return self._stack is not None

    @property
    def value(self) -> Tensor:
        """`[b, rows, cols]`; only a parameter's own memory if there is a single one."""
        if self._stack is None:
            self._stack = self._make(self._tensors)
        return self._stack

    def slice(self, start: int, stop: int) -> Tensor:
        """`[stop − start, rows, cols]` of `value`, to be read before another is asked for. It makes no stack of all."""
        return self._make(self._tensors[start:stop]) if self._stack is None else self._stack[start:stop]

    def assign(self, start: int, stop: int, values: Tensor) -> None:
        """Overwrites a slice, in the tensors themselves where `each` are they."""
        if self.direct:
            shape = self._tensors[0].shape
            torch._foreach_copy_(self._tensors[start:stop], list(values.view(stop - start, *shape).unbind()))
        else:
            self.value[start:stop].copy_(values)

    def replace(self, stack: Tensor) -> None:
        """Puts another stack in its place."""
        self._stack = stack

    @property
    def direct(self) -> bool:
        """Whether `each` are the tensors themselves."""
        return self._direct and not self.stacked

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors themselves, for what reads and writes them in their own dtype; not to be used once stacked."""
        return self._tensors

    def each(self) -> list[Tensor]:
        """The tensors themselves, or their slices of the stack where it was made or they are of another dtype."""
        if self.direct:
            return list(self._tensors)
        return self.views_of(self.value)

    def views_of(self, stack: Tensor) -> list[Tensor]:
        """The slices of any stack of this size, in the tensors' own shape."""
        return list(stack.view(stack.shape[0], *self._tensors[0].shape).unbind())

    def strided(self, stride: int) -> Tensor:
        """`[b, ⌈rows·cols/stride⌉]`: every so many-th number, without making the stack for it."""
        if not self.direct:
            return self.value.flatten(1)[:, ::stride]
        return torch.stack([tensor.view(-1)[::stride] for tensor in self._tensors])
