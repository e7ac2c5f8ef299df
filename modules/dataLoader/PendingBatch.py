from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.dataLoader.Batch import Batch
from modules.dataLoader.collate import Allocate, stack, stack_texts, uneven
from modules.dataLoader.Entry import Entry
from modules.dataLoader.TensorStore import Tensors

import torch
from torch import Tensor


@dataclass
class PendingBatch:
    """A batch on its way: first what any thread can do, then what only the thread that trains can.

    Args:
        latents: of each sample.
        texts, conditioning: of each sample; None if batches have none.
        company: texts of the same batch in other processes, where these are filled up to the length of the longest.
        masks: of each sample, None for one that is 1 everywhere; None if batches have none.
        unmasked_weight: least value of a mask.
        loss_weight, placement: numbers of each sample.
        facts: the other attributes of `Batch`.
        empty_text: makes the entry of the empty caption.
        allocate: gives the memory of the batch's tensors.
    """

    latents: Sequence[Entry]
    texts: Sequence[Entry] | None
    company: Sequence[Entry]
    conditioning: Sequence[Entry] | None
    masks: Sequence[Entry | None] | None
    unmasked_weight: float
    loss_weight: Sequence[float]
    placement: Sequence[Sequence[int]]
    facts: dict[str, Any]
    empty_text: Callable[[], Entry]
    allocate: Allocate
    _empty: Entry | None = field(default=None, init=False)
    _batch: Batch | None = field(default=None, init=False)

    def read(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Reads and renders, and joins the samples unless the model is needed first. May run in any thread.

        Args:
            wanted: is asked before each entry; False ends it.

        Raises:
            UserError: if a file that has to be read again has changed.
        """
        for entry in self._entries():
            if not wanted():
                return
            entry.read()
        # a mask is never made by the model
        if all(entry.stored for entry in self._entries() if entry.kind != "masks"):
            self._batch = self._joined()
            # their memory takes the next batch while this one waits
            self.latents, self.texts, self.conditioning, self.masks, self._empty = (), None, None, None, None
            self.company = ()

    @property
    def joined(self) -> bool:
        """Whether `read` has joined the samples, so that the model is not needed."""
        return self._batch is not None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds while it waits: of its tensors, or of what the model has to encode."""
        return sum(entry.nbytes for entry in self._entries()) if self._batch is None else self._batch.nbytes

    def finish(self) -> Batch:
        """The batch. The model encodes what is not stored.

        Raises:
            UserError: if a file has changed, or what is encoded is not finite, or can't be kept.
        """
        batch, self._batch = self._batch or self._joined(), None
        return batch

    def _entries(self) -> Iterator[Entry]:
        for entries in (self.latents, self.texts, self.company, self.conditioning, self.masks):
            yield from (entry for entry in entries or () if entry is not None)
        texts = [*(self.texts or ()), *self.company]
        if texts and all(text.stored for text in texts) and uneven([text.tensors() for text in texts]):
            self._empty = self._empty or self.empty_text()
            yield self._empty

    def _joined(self) -> Batch:
        latents = [entry.tensors()["latent"] for entry in self.latents]
        return Batch(
            latents=stack(latents, self.allocate),
            text=None if self.texts is None else self._joined_texts(self.texts),
            loss_weight=self._numbers(self.loss_weight),
            mask=None if self.masks is None else self._joined_masks(self.masks, latents),
            placement=self._numbers(self.placement),
            conditioning=None if self.conditioning is None else self._joined_conditioning(self.conditioning),
            **self.facts,
        )

    def _joined_texts(self, own: Sequence[Entry]) -> Tensors:
        texts = [entry.tensors() for entry in (*own, *self.company)]
        # read only where it is needed: it may have megabytes
        empty = (self._empty or self.empty_text()).tensors() if uneven(texts) else None
        return stack_texts(texts, empty, self.allocate, len(own))

    def _joined_masks(self, masks: Sequence[Entry | None], latents: Sequence[Tensor]) -> Tensor:
        joined = [
            torch.ones(1, *latent.shape[-2:])
            if mask is None
            else mask.tensors()["mask"].clamp(self.unmasked_weight, 1)
            for mask, latent in zip(masks, latents, strict=True)
        ]  # fmt: skip
        return stack(joined, self.allocate)

    def _joined_conditioning(self, conditioning: Sequence[Entry]) -> Tensors:
        shown = [entry.tensors() for entry in conditioning]
        return {name: stack([tensors[name] for tensors in shown], self.allocate) for name in shown[0]}

    def _numbers(self, values: Sequence) -> Tensor:
        return stack([torch.tensor(values, dtype=torch.float32)], self.allocate)[0]
