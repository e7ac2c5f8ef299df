from typing import Any

import torch
from torch import Tensor, nn


class ActivationOffload:
    """What autograd keeps of a component's forward for its backward waits in another memory.

    With gradient checkpointing that is the input of each checkpointed block; without, all activations. Weights and
    small tensors stay on the device.

    Args:
        component: its calls are followed.
        home: where tensors wait.
        device: only tensors on it are moved.

    Attributes:
        moved: bytes that were sent away so far.
    """

    SMALLEST = 1 << 16  # bytes; below, the launch costs more than the memory is worth

    def __init__(self, component: nn.Module, home: torch.device, device: torch.device) -> None:
        self.home, self.device, self.moved = home, device, 0
        self._entered: list[torch.autograd.graph.saved_tensors_hooks] = []
        component.register_forward_pre_hook(self._enter)
        component.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._entered.append(hooks)

    def _leave(self, module: nn.Module, arguments: Any, result: Any) -> None:
        self._entered.pop().__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Tensor | tuple[Tensor]:
        # views share their memory with what stays: a weight's transpose is no copy until it is sent away
        weight = isinstance(tensor._base if tensor._base is not None else tensor, nn.Parameter)
        if weight or tensor.device.type != self.device.type or tensor.nbytes < self.SMALLEST:
            return tensor
        self.moved += tensor.nbytes
        pinned = self.device.type == "cuda" and self.home.type == "cpu"
        away = torch.empty_like(tensor, device=self.home, pin_memory=pinned)
        # not without waiting: the memory that is read may be used again, and the host's be read, before it is done
        away.copy_(tensor)
        return (away,)

    def _unpack(self, packed: Tensor | tuple[Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[0].to(self.device, non_blocking=True, copy=True)
