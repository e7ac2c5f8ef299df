from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn


class StateView(Mapping):
    """What an optimizer remembers of each parameter, for programs that read `optimizer.state`.

    An entry is made when it is asked for: `step`, and under `slots` tensors that are the state itself. Of a parameter
    that the optimizer does not have it is empty, as in torch.

    Args:
        parameters: all of the optimizer.
        entry: makes the entry of one of them.
        forget: forgets the state of all.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        entry: Callable[[nn.Parameter], dict[str, Any]],
        forget: Callable[[], None],
    ) -> None:
        # a dict for quick questions that keeps their order
        self._parameters, self._entry, self._forget = dict.fromkeys(parameters), entry, forget

    def __getitem__(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._entry(parameter) if parameter in self._parameters else {}

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._parameters

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def clear(self) -> None:
        """Forgets everything: the next step is the first one."""
        self._forget()
