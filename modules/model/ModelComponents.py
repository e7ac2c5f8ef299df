from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class ModelComponents(Mapping[str, nn.Module]):
    """The components of a base model by name: loaded when they are first asked for, and again after they were freed.

    Whoever asks for a component gets it on the device. Those that wait can be parked on another one.

    Args:
        names: of all components.
        load: name -> a component on the device.
        device: where components work.
        temp_device: where parked ones wait.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], nn.Module],
        device: torch.device,
        temp_device: torch.device,
    ) -> None:
        self._names, self._load = tuple(names), load
        self.device, self.temp_device = device, temp_device
        self._loaded: dict[str, nn.Module] = {}
        # parked ones -> where their tensors are that did not leave: those of layers that wait elsewhere anyway
        self._parked: dict[str, set[int]] = {}
        self._changes: dict[str, list[Callable[[nn.Module], None]]] = {}

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
            for change in self._changes.get(name, ()):
                change(self._loaded[name])
        if name in self._parked:
            stays = self._parked.pop(name)
            self._loaded[name]._apply(lambda tensor: tensor if tensor.data_ptr() in stays else tensor.to(self.device))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def loaded(self) -> Mapping[str, nn.Module]:
        """The components that are in memory now, wherever they are."""
        return dict(self._loaded)

    def on_load(self, name: str, change: Callable[[nn.Module], None]) -> None:
        """Applies `change` to a component: now if it is loaded, and whenever it will be."""
        self._changes.setdefault(name, []).append(change)
        if name in self._loaded:
            change(self._loaded[name])

    def take_changes(self, other: "ModelComponents") -> None:
        """Applies to its components what `on_load` applies to those of another, which stand for the same ones."""
        for name, changes in other._changes.items():
            for change in changes:
                self.on_load(name, change)

    def load_all(self) -> None:
        """Loads every component, so that what is broken is found at once."""
        for name in self:
            self[name]

    def park(self, name: str) -> bool:
        """Lets a component wait on `temp_device`, if it is loaded and does not; returns whether it has left."""
        leaves = name in self._loaded and name not in self._parked and self.temp_device != self.device
        if leaves:
            module, here = self._loaded[name], self.device.type
            tensors = (*module.parameters(), *module.buffers())
            self._parked[name] = {tensor.data_ptr() for tensor in tensors if tensor.device.type != here}
            module._apply(lambda tensor: tensor.to(self.temp_device) if tensor.device.type == here else tensor)
        return leaves

    @contextmanager
    def replaced(self, others: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside the block other modules take the places of loaded components."""
        own = {name: self._loaded[name] for name in others}
        self._loaded |= others
        try:
            yield
        finally:
            self._loaded |= own

    def free(self, name: str) -> None:
        """Forgets a component; it is loaded anew if it is asked for again."""
        self._loaded.pop(name, None)
        self._parked.pop(name, None)
