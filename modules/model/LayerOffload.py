from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from modules.model.DeviceLink import DeviceLink
from modules.model.FetchAhead import FetchAhead

from torch import Tensor, nn

# A unit that moves as a whole has at most this share of the component's bytes.
LARGEST_UNIT = 1 / 20


class LayerOffload:
    """Frozen layers that wait in another memory and are on the device only while they are called.

    Whenever a unit, or a module inside of it, is called, copies of that module's tensors take the place of the waiting
    ones until the call returns. In the backward pass gradient checkpointing calls it again, and autograd keeps the
    copies of that call until it has used them; without checkpointing it would keep those of the whole forward.
    Nothing is copied back. Trained tensors, and adapters, which are no part of the layers, stay where they are.

    Where the link overlaps, the copies of the next call are under way meanwhile: those of one unit, or of several that
    are no larger than the largest. A module that is called twice in a row keeps its copies.

    Args:
        units: none inside another. Their frozen tensors must be where they wait already, see `offload`.
        link: between there and where they compute.

    Attributes:
        fetched: what brings them.
        held: bytes of copies that modules use now.
    """

    def __init__(self, units: Sequence[nn.Module], link: DeviceLink) -> None:
        self.held = 0
        # nothing here refers to the modules, so that a component is freed with its last user
        modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
        calls: dict[int, _Call] = {}
        self.fetched = FetchAhead(link, partial(_waiting_tensors, modules, calls))
        self.fetched.limit = max(map(module_bytes, units), default=0)
        for unit in units:
            call = _Call()
            for module in unit.modules():
                modules[id(module)], calls[id(module)] = module, call
                module.register_forward_pre_hook(partial(self._enter, call))
                # also where checkpointing breaks a call off because it has all that it needs
                module.register_forward_hook(partial(self._leave, call), always_call=True)

    def _enter(self, call: "_Call", module: nn.Module, arguments: Any) -> None:
        call.depth += 1
        if call.depth > 1:
            return
        found = list(_frozen(module))
        if not found:
            return
        copies = self.fetched.take(id(module), [tensor for _, _, tensor in found])
        for (place, name, tensor), copy in zip(found, copies, strict=True):
            place[name] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
            self.held += tensor.nbytes
        call.waiting, call.copies = found, copies

    def _leave(self, call: "_Call", module: nn.Module, arguments: Any, result: Any) -> None:
        call.depth -= 1
        if call.depth or not call.waiting:
            return
        waiting, copies = call.waiting, call.copies
        call.waiting, call.copies = [], []
        for place, name, tensor in waiting:
            place[name] = tensor
            self.held -= tensor.nbytes
        if self.fetched.expects(id(module)):
            self.fetched.give_back(id(module), [tensor for _, _, tensor in waiting], copies)


class _Call:
    """How deep calls inside a unit are nested now, what the outermost one has replaced, and by what."""

    def __init__(self) -> None:
        self.depth = 0
        self.waiting: list[tuple[dict[str, Any], str, Tensor]] = []
        self.copies: list[Tensor] = []


def _waiting_tensors(modules: Mapping[int, nn.Module], calls: Mapping[int, _Call], request: int) -> list[Tensor] | None:
    """What a call of a module needs; None while a call of its unit uses it, or if it is gone."""
    module = modules.get(request)
    if module is None or calls[request].depth:
        return None
    return [tensor for _, _, tensor in _frozen(module)]


def offload(component: nn.Module, units: Sequence[str], link: DeviceLink) -> LayerOffload:
    """Lets the units of these names wait at the link's `home`, in memory that a GPU can fetch from by itself."""
    modules = [component.get_submodule(name) for name in units]
    for place, name, tensor in [found for module in modules for found in _frozen(module)]:
        own = tensor.detach().to(link.home)
        own = own.pin_memory() if link.device.type == "cuda" and link.home.type == "cpu" else own
        place[name] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
    return LayerOffload(modules, link)


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
