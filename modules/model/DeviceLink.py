"""Copies between a device and the memory where tensors wait for it."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Transfer:
    """Copies that were begun.

    Args:
        copies: may be used after `wait` alone.
        settle: lets whoever computes wait for the copies; may be called more than once.
        source: what is being read and must neither be freed nor written to before `wait`.

    Attributes:
        source: None after `wait`.
    """

    def __init__(self, copies: Sequence[Tensor], settle: Callable[[], None], source: Tensor | None = None) -> None:
        self.copies, self._settle, self.source = list(copies), settle, source
        self._version = None if source is None else source._version
        self._overwritten = False

    @property
    def overwritten(self) -> bool:
        """Whether the source was changed in place before `wait`: neither it nor its copy may be used."""
        if self.source is not None:
            self._overwritten = self.source._version != self._version
        return self._overwritten

    def wait(self) -> list[Tensor]:
        """The copies. What is computed from now on finds their numbers, and may reuse the memory of the source."""
        self._settle()
        # asked for the last time at which it can be known
        self._overwritten, self.source = self.overwritten, None
        return self.copies


class DeviceLink:
    """The plain way: a copy is complete when the call returns, or in order with what the device computes.

    Args:
        device: where tensors are used.
        home: where they wait.

    Attributes:
        overlaps: whether copies go on while the device computes, so that it is worth beginning them early.
    """

    overlaps = False

    def __init__(self, device: torch.device, home: torch.device) -> None:
        self.device, self.home = device, home

    def fetch(self, tensors: Sequence[Tensor]) -> Transfer:
        """Begins to copy tensors from `home` to the device; those that were sent by this link have arrived before."""
        copies = [tensor.to(self.device, non_blocking=True, copy=True) for tensor in tensors]
        return Transfer(copies, _nothing)

    def send(self, tensor: Tensor) -> Transfer:
        """Begins to copy a tensor from the device to `home`."""
        away = self._room_at_home(tensor)
        # not without waiting: the memory that is read may be used again before it is done
        away.copy_(tensor)
        return Transfer([away], _nothing)

    def _room_at_home(self, tensor: Tensor) -> Tensor:
        pinned = self.device.type == "cuda" and self.home.type == "cpu"
        return torch.empty_like(tensor, device=self.home, pin_memory=pinned)


class StreamLink(DeviceLink):
    """Copies on two CUDA streams, one for each direction, while the stream of the caller computes.

    Why no memory is used too early, without `record_stream` and without the host waiting. `c` is the stream that
    computes, the caller's current one, also inside of the backward pass; `f` is the one that fetches, `s` that sends.

    - A fetched copy lies in memory of `c`'s pool. Before `f` writes to it, `f` waits for all that was given to `c` so
      far, which includes whoever used that memory before. Before `c` reads the copy it waits for `f`, see `wait`.
      When the copy is freed, its memory goes back to the pool of `c`, whose later work comes after that wait. A
      transfer that nobody waited for makes `c` wait when it is dropped, before its copies are freed.
    - A tensor is sent after all that `c` computed so far. It is held until `wait` has made `c` wait for `s`, so that
      its memory is not given to a later operation of `c` before it is read. Nobody may write to it meanwhile. Autograd
      does not check that for tensors that hooks take away, so `Transfer.overwritten` tells it, and `ActivationOffload`
      refuses to compute gradients with such a tensor.
    - `f` waits for `s` before it fetches, so that what was sent is at home before it is read there.
    - Memory at home that copies read or write is pinned. Weights there are kept. Torch's allocator of pinned memory
      notes the stream of each copy by itself, and gives the memory out again only when the copy is over.

    As copies wait for `c`, no more of them are on the device than the caller began, even where the host is far ahead.
    """

    overlaps = True

    def __init__(self, device: torch.device, home: torch.device) -> None:
        super().__init__(device, home)
        self._fetching, self._sending = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def fetch(self, tensors: Sequence[Tensor]) -> Transfer:
        computing = torch.cuda.current_stream(self.device)
        copies = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        self._fetching.wait_stream(computing)
        self._fetching.wait_stream(self._sending)
        return self._transfer(self._fetching, computing, tensors, copies)

    def send(self, tensor: Tensor) -> Transfer:
        computing = torch.cuda.current_stream(self.device)
        away = self._room_at_home(tensor)
        self._sending.wait_stream(computing)
        return self._transfer(self._sending, computing, [tensor], [away], tensor)

    def _transfer(
        self,
        stream: torch.cuda.Stream,
        computing: torch.cuda.Stream,
        tensors: Sequence[Tensor],
        copies: Sequence[Tensor],
        source: Tensor | None = None,
    ) -> Transfer:
        with torch.no_grad(), torch.cuda.stream(stream):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        done = stream.record_event()
        transfer = Transfer(copies, lambda: computing.wait_event(done), source)
        # runs before the transfer lets go of its tensors; waiting once more for what is over costs nothing
        weakref.finalize(transfer, computing.wait_event, done).atexit = False
        return transfer


def device_link(device: torch.device, home: torch.device, asynchronous: bool) -> DeviceLink:
    """The link between a device and a memory; one that overlaps where that is wanted and the device can do it."""
    return (StreamLink if asynchronous and device.type == "cuda" else DeviceLink)(device, home)


def _nothing() -> None:
    """A plain copy needs no waiting."""
