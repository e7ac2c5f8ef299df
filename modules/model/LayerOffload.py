from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# A unit that moves as a whole has at most this share of the component's bytes.
LARGEST_UNIT = 1 / 20


class LayerOffload:
    """Frozen layers that wait in another memory and are on the device only while they are called.

    Whenever a unit, or a module inside of it, is called, copies of that module's tensors take the place of the waiting
    ones until the call returns. In the backward pass gradient checkpointing calls it again, and autograd keeps the
    copies of that call until it has used them; without checkpointing it would keep those of the whole forward.
    Nothing is copied back. Trained tensors, and adapters, which are no part of the layers, stay where they are.

    Args:
        units: none inside another. Their frozen tensors must be where they wait already, see `offload`.
        device: where they compute.

    Attributes:
        moved: bytes that were brought so far.
        held: bytes of copies that modules use now.
    """

    def __init__(self, units: Sequence[nn.Module], device: torch.device) -> None:
        self.device, self.moved, self.held = device, 0, 0
        for unit in units:
            call = _Call()
            for module in unit.modules():
                module.register_forward_pre_hook(partial(self._enter, call))
                # also where checkpointing breaks a call off because it has all that it needs
                module.register_forward_hook(partial(self._leave, call), always_call=True)

    def _enter(self, call: "_Call", module: nn.Module, arguments: Any) -> None:
        call.depth += 1
        if call.depth > 1:
            return
        for place, name, tensor in _frozen(module):
            copy = tensor.to(self.device, non_blocking=True, copy=True)
            place[name] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
            call.waiting.append((place, name, tensor))
            self.moved += tensor.nbytes
            self.held += tensor.nbytes

    def _leave(self, call: "_Call", module: nn.Module, arguments: Any, result: Any) -> None:
        call.depth -= 1
        if call.depth:
            return
        while call.waiting:
            place, name, tensor = call.waiting.pop()
            place[name] = tensor
            self.held -= tensor.nbytes


class _Call:
    """How deep calls inside a unit are nested now, and what the outermost one has replaced."""

    def __init__(self) -> None:
        self.depth = 0
        self.waiting: list[tuple[dict[str, Any], str, Tensor]] = []


def offload(component: nn.Module, units: Sequence[str], device: torch.device, home: torch.device) -> LayerOffload:
    """Lets the units of these names wait at `home`, in memory that a GPU can fetch from by itself."""
    modules = [component.get_submodule(name) for name in units]
    for place, name, tensor in [found for module in modules for found in _frozen(module)]:
        own = tensor.detach().to(home)
        own = own.pin_memory() if device.type == "cuda" and home.type == "cpu" else own
        place[name] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
    return LayerOffload(modules, device)


def waiting_units(component: nn.Module, fraction: float) -> list[str]:
    """Names of the last of the component's repeated blocks that hold at least this share of all blocks' bytes.

    Blocks are what a ModuleList holds, at any depth; those above a twentieth of the component are divided.
    """
    sizes = {
        name: module_bytes(component.get_submodule(name))
        for name in _units(component, LARGEST_UNIT * module_bytes(component), "", False)
    }
    chosen, wanted = [], fraction * sum(sizes.values())
    for name in reversed(sizes):
        if wanted <= 0:
            break
        chosen.append(name)
        wanted -= sizes[name]
    return chosen


def module_bytes(module: nn.Module) -> int:
    """Bytes of all that a module holds, in whatever format: parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _units(module: nn.Module, limit: float, name: str, repeated: bool) -> Iterator[str]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        inside = repeated or isinstance(module, nn.ModuleList)
        size = module_bytes(child)
        if inside and 0 < size and (size <= limit or not list(child.children())):
            yield path
        else:
            yield from _units(child, limit, path, inside)


def _frozen(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """(dict that holds it, its name there, tensor) of all parameters without gradient, and of all buffers."""
    for submodule in module.modules():
        for place in (submodule._parameters, submodule._buffers):
            for name, tensor in list(place.items()):
                if tensor is not None and not tensor.requires_grad:
                    yield place, name, tensor
