from collections.abc import Callable
from dataclasses import dataclass, field

from modules.dataLoader.TensorStore import Tensors, TensorStore

from torch import Tensor


@dataclass
class Entry:
    """A latent, mask, caption or conditioning: from the store, else rendered from files and encoded by the model.

    `read` may run in any thread, ahead of its use. `tensors` asks the model where nothing is stored, so that it belongs
    to the thread that trains.

    Args:
        store: keeps it; None: it is made at each use.
        kind: "latents", "masks", "captions" or "conditioning".
        key: its name in the store.
        render: gives what `encode` takes.
        encode: gives its tensors.
    """

    store: TensorStore | None
    kind: str
    key: str
    render: Callable[[], tuple[Tensor | None, ...]]
    encode: Callable[..., Tensors]
    _stored: Tensors | None = field(default=None, init=False)
    _rendered: tuple[Tensor | None, ...] | None = field(default=None, init=False)

    def read(self) -> None:
        """Takes it from the store, or renders it.

        Raises:
            UserError: if a file that has to be read again has changed.
        """
        if self._stored is None and self.store is not None:
            self._stored = self.store.find(self.kind, self.key)
        if self._stored is None and self._rendered is None:
            self._rendered = self.render()

    def look(self) -> bool:
        """Whether the store has it, by its header and size. If not, it is rendered, for `encoded`."""
        if self.store is not None and self.store.has(self.kind, self.key):
            return True
        self._rendered = self.render()
        return False

    @property
    def stored(self) -> bool:
        """Whether `read` has found it, so that the model is not needed."""
        return self._stored is not None

    @property
    def nbytes(self) -> int:
        """Bytes of what it holds: what `read` has found, or else rendered."""
        held = self._rendered if self._stored is None else self._stored.values()
        return sum(tensor.nbytes for tensor in held or () if tensor is not None)

    def tensors(self) -> Tensors:
        """Its tensors, which must not be changed. What had to be encoded is kept in the store."""
        if self._stored is None:
            self.read()
        if self._stored is None:
            # another use of the same may have been encoded since `read` looked for it
            store = self.store
            self._stored = store.fetch(self.kind, self.key, self.encoded) if store is not None else self.encoded()
            self._rendered = None
        return self._stored

    def encoded(self) -> Tensors:
        """What the model makes of it; nothing is kept."""
        if self._rendered is None:
            self._rendered = self.render()
        return self.encode(*self._rendered)

    def keep(self, tensors: Tensors) -> None:
        """Stores what `encoded` gave. UserError if the cache can't be written."""
        if self.store is not None:
            self.store.add(self.kind, self.key, tensors)
