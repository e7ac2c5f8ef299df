from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from modules.model.DeviceLink import DeviceLink, Transfer
from modules.model.FetchAhead import FetchAhead

import torch
from torch import Tensor, nn


class ActivationOffload:
    """What autograd keeps of a component's forward for its backward waits in another memory.

    With gradient checkpointing that is the input of each checkpointed block; without, all activations. Weights and
    small tensors stay on the device.

    Where the link overlaps, tensors are sent while the next ones are computed, and fetched before they are asked for.
    On the device are then at most twice the largest tensor's bytes of those that are being sent, and as many of those
    that are fetched early. What is still there when it is asked for is used as it is.

    Args:
        component: its calls are followed.
        link: between the device and where tensors wait. Only tensors on its device are moved.

    Attributes:
        fetched: what brings them back.
        moved: bytes that were sent away so far.
    """

    SMALLEST = 1 << 16  # bytes; below, the launch costs more than the memory is worth

    def __init__(self, component: nn.Module, link: DeviceLink) -> None:
        self.link, self.moved = link, 0
        self._entered: list[torch.autograd.graph.saved_tensors_hooks] = []
        # autograd alone holds them
        self._kept: WeakValueDictionary[int, _Kept] = WeakValueDictionary()
        self._count = 0
        self._sending: deque[Transfer] = deque()
        self.fetched = FetchAhead(link, partial(_waiting_tensors, self._kept))
        component.register_forward_pre_hook(self._enter)
        component.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        if not self._kept:
            # each step numbers its tensors alike
            self._count = 0
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._entered.append(hooks)

    def _leave(self, module: nn.Module, arguments: Any, result: Any) -> None:
        self._entered.pop().__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> "Tensor | _Kept":
        # views share their memory with what stays: a weight's transpose is no copy until it is sent away
        weight = isinstance(tensor._base if tensor._base is not None else tensor, nn.Parameter)
        if weight or tensor.device.type != self.link.device.type or tensor.nbytes < self.SMALLEST:
            return tensor
        self.moved += tensor.nbytes
        self.fetched.limit = max(self.fetched.limit, 2 * tensor.nbytes)
        self._settle(self.fetched.limit - tensor.nbytes)
        kept = _Kept(self._count, self.link.send(tensor.detach()))
        self._count += 1
        self._kept[kept.number] = kept
        if kept.transfer.source is not None:
            self._sending.append(kept.transfer)
        return kept

    def _unpack(self, packed: "Tensor | _Kept") -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if packed.transfer.overwritten:
            raise RuntimeError(
                f"A tensor of {list(packed.away.shape)} that autograd keeps was changed in place while it was copied: "
                "gradients with it would be wrong. Set activation_offloading to false, and report the model."
            )
        source = packed.transfer.source
        if source is not None:
            self.fetched.note(packed.number)
            return source
        self._settle(0)
        return self.fetched.take(packed.number, [packed.away])[0]

    def _settle(self, room: int) -> None:
        """Waits for the first tensors that are being sent, until the others have no more bytes than this."""
        size = sum(transfer.source.nbytes for transfer in self._sending)
        while size > room:
            transfer = self._sending.popleft()
            size -= transfer.source.nbytes
            transfer.wait()


class _Kept:
    """A tensor that autograd keeps and that waits elsewhere.

    Args:
        number: its place among those of a step.
        transfer: that sends it.
    """

    def __init__(self, number: int, transfer: Transfer) -> None:
        self.number, self.transfer = number, transfer
        (self.away,) = transfer.copies


def _waiting_tensors(kept: Mapping[int, _Kept], number: int) -> list[Tensor] | None:
    """A tensor of a step that is not on the device; None if it is there, or if autograd needs it no more."""
    own = kept.get(number)
    return None if own is None or own.transfer.source is not None else [own.away]
