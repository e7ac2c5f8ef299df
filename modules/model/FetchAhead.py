from collections.abc import Callable, Hashable, Iterator, Sequence

from modules.model.DeviceLink import DeviceLink, Transfer

import torch
from torch import Tensor

# requests that are looked ahead
FARTHEST = 16


class FetchAhead:
    """Fetches tensors before they are asked for, in the order in which they were asked for the last time.

    What followed the same two requests before, with gradients or without, is expected to follow them again. So each
    order is learned when it is first seen: that of the forward, of the backward, of sampling and of validation. Where
    something else is asked for, what was fetched in vain is dropped, and the rest comes by a plain fetch.

    Args:
        link: the way to the device. One that does not overlap is never used early.
        sources: request -> its tensors as they wait now; None if it needs none of them from there now.

    Attributes:
        limit: bytes that may be under way or have arrived early at a time.
        moved: bytes that were fetched so far.
        ahead: bytes under way or arrived early now.
    """

    def __init__(self, link: DeviceLink, sources: Callable[[Hashable], Sequence[Tensor] | None]) -> None:
        self.link, self._sources = link, sources
        self.limit, self.moved, self.ahead = 0, 0, 0
        self._early: dict[Hashable, _Early] = {}
        self._follows: dict[tuple, tuple[Hashable, bool]] = {}
        # the last two requests, each with whether gradients were computed
        self._last: tuple = (None, None)

    def take(self, request: Hashable, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of tensors on the device, and begins to fetch what is expected after them.

        Args:
            request: what they are known by; the same each time.
            tensors: as they wait now. Others that were fetched early for this request are not used.
        """
        early = self._arrived(request)
        if early is not None and early.holds(tensors):
            copies = early.transfer.wait()
        else:
            del early
            copies = self._begin(tensors).wait()
        self.note(request)
        return copies

    def note(self, request: Hashable) -> None:
        """Learns that something was asked for, and begins to fetch what is expected after it."""
        if not self.link.overlaps:
            return
        entry = (request, torch.is_grad_enabled())
        self._follows[self._last] = entry
        self._last = (self._last[1], entry)
        for expected in self._expected():
            tensors = None if expected in self._early else self._sources(expected)
            if tensors is None:
                continue
            size = _bytes(tensors)
            if self.ahead + size > self.limit:
                return
            try:
                self._early[expected] = _Early(tensors, self._begin(tensors))
            except torch.OutOfMemoryError:
                # there may be enough when it is asked for
                return
            self.ahead += size

    def expects(self, request: Hashable) -> bool:
        """Whether a request is expected to be the next one."""
        entry = self._follows.get(self._last)
        return entry is not None and entry[0] == request

    def give_back(self, request: Hashable, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        """Keeps copies that were used for a request that is expected again at once."""
        early = _Early(tensors, Transfer(copies, lambda: None))
        self._early = {request: early, **self._early}
        self.ahead += early.size

    def _expected(self) -> Iterator[Hashable]:
        """The requests that should come now, until one of them would come again."""
        last, passed = self._last, set()
        while len(passed) < FARTHEST and (entry := self._follows.get(last)) is not None and entry[0] not in passed:
            passed.add(entry[0])
            yield entry[0]
            last = (last[1], entry)

    def _arrived(self, request: Hashable) -> "_Early | None":
        """What was fetched early for a request; what was to come before it is dropped, or everything if it is not."""
        while self._early:
            first = next(iter(self._early))
            early = self._early.pop(first)
            self.ahead -= early.size
            if first == request:
                return early
        return None

    def _begin(self, tensors: Sequence[Tensor]) -> Transfer:
        transfer = self.link.fetch(tensors)
        self.moved += _bytes(tensors)
        return transfer


class _Early:
    """What was fetched before it was asked for.

    Args:
        tensors: whose copies they are.
        transfer: that brings the copies.
    """

    def __init__(self, tensors: Sequence[Tensor], transfer: Transfer) -> None:
        self._tensors = [(tensor, tensor._version) for tensor in tensors]
        self.transfer, self.size = transfer, _bytes(tensors)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether they are the same tensors, not written to since."""
        return len(tensors) == len(self._tensors) and all(
            tensor is own and tensor._version == version
            for tensor, (own, version) in zip(tensors, self._tensors, strict=True)
        )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
