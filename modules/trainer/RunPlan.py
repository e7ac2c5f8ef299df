import hashlib
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from modules.dataLoader.plan import PlannedBatch
from modules.dataLoader.TrainingData import TrainingData
from modules.trainer.TrainProgress import TrainProgress
from modules.util.config.TrainConfig import TrainConfig
from modules.util.World import ALONE, World

KEPT_SHARES = 16
"""Steps whose shares stay in memory, more than are read ahead."""


class RunPlan:
    """The batches of a run as one long list, of which each step takes the next `gradient_accumulation_steps`.

    Where a run stands is told by what it has seen, the epochs that are over and the images of the one that is not. A
    step number would mean other images as soon as batches, accumulation, balancing or the images change.

    Of a step's samples each process trains a part of about the same size, one behind the other.

    Args:
        config: of the run.
        data: that it trains on.
        world: the processes that share the samples of each step.
        in_step: whether all processes have to train the same number of batches in a step; those that have fewer
            stand in with one that counts nothing.

    Attributes:
        total_steps: of the run, those before it was resumed included.
        epochs: of the run.
        batches: of all epochs.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, world: World = ALONE, in_step: bool = False) -> None:
        self.epochs, self._world, self._in_step = config.epochs, world, in_step
        # step -> what this process trains of it, of the steps that were asked for last
        self._shares: dict[int, dict[int, PlannedBatch]] = {}
        self._data, self._accumulation = data, config.gradient_accumulation_steps
        counter = data.counter(config.epochs)
        self._ends = list(accumulate(counter.batches(epoch) for epoch in range(config.epochs)))
        self.batches = self._ends[-1]
        # the epoch of the batch that was done last, and of those from there on that are planned: their batches, and how
        # many samples are in the first of them
        self._now = 0
        self._planned: dict[int, tuple[list[PlannedBatch], list[int]]] = {}
        self._planning = threading.Lock()
        self._settings = {
            "batch_size": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "images": len(data.source.images),
            "samples of an epoch": counter.samples(),
        }
        self._continue_at(0, 0)

    def _continue_at(self, step: int, batch: int) -> None:
        """From now on step number `step`, from 0, begins with batch number `batch` of the run."""
        self._first_step, self._first_batch = step, batch
        self._shares = {}
        self.total_steps = step + -(-(self._ends[-1] - batch) // self._accumulation)

    def batches_of(self, step: int) -> range:
        """Numbers of the batches that step number `step`, from 0, takes."""
        first = self._first_batch + (step - self._first_step) * self._accumulation
        return range(first, min(first + self._accumulation, self._ends[-1]))

    def batch(self, index: int) -> PlannedBatch:
        """Batch number `index` of the run. May be called from any thread."""
        epoch, start = self._place(index)
        return self._plan(epoch)[0][index - start]

    def share(self, index: int) -> PlannedBatch | None:
        """What this process trains of batch `index`; None if nothing. May be called from any thread."""
        if self._world.alone:
            return self.batch(index)
        return self._share_of(self._first_step + (index - self._first_batch) // self._accumulation).get(index)

    def own(self, step: int) -> list[tuple[int, bool]]:
        """What this process trains of a step, at least one batch.

        Returns:
            numbers of the batches of which it has a part, and whether that counts. It does not where there are fewer
            samples than processes: then it stands in with a sample of another's, so that all do the same. Where all
            have to do so as often, the last one stands in, too.
        """
        indices = list(self.batches_of(step))
        if self._world.alone:
            return [(index, True) for index in indices]
        counts = self._run_of(step, self._world.rank)[2]
        found = [(index, counts) for index in self._share_of(step)]
        if self._in_step:
            most = max(len(self._parts(step, rank)) for rank in range(self._world.size))
            found += [(found[-1][0], False)] * (most - len(found))
        return found

    def _share_of(self, step: int) -> dict[int, PlannedBatch]:
        """Number of a batch -> what this process trains of it. Made once for a step, whichever thread asks."""
        found = self._shares.get(step)
        if found is None:
            parts = self._parts(step, self._world.rank)
            found = {index: self.batch(index).part(start, stop) for index, start, stop in parts}
            with self._planning:
                kept = sorted(self._shares)[-KEPT_SHARES:]
                self._shares = {**{other: self._shares[other] for other in kept}, step: found}
        return found

    def _parts(self, step: int, rank: int) -> list[tuple[int, int, int]]:
        """What a process trains in a step: number of each batch, and its samples from one to before another."""
        begin, end, _ = self._run_of(step, rank)
        found, before = [], 0
        for index in self.batches_of(step):
            size = len(self.batch(index).samples)
            start, stop = (min(max(place - before, 0), size) for place in (begin, end))
            if start < stop:
                found.append((index, start, stop))
            before += size
        return found

    def names(self, step: int) -> list[str]:
        """The images that all processes train in a step."""
        images = self._data.source.images
        return [images[sample.image].path for index in self.batches_of(step) for sample in self.batch(index).samples]

    def _run_of(self, step: int, rank: int) -> tuple[int, int, bool]:
        """The samples of a step that a process trains, from one place to before another, and whether they count."""
        samples = sum(len(self.batch(index).samples) for index in self.batches_of(step))
        begin, end = (samples * place // self._world.size for place in (rank, rank + 1))
        return (begin, end, True) if begin < end else (samples - 1, samples, False)

    def place_in_epoch(self, index: int) -> tuple[int, int]:
        """How many batches of its epoch are done after batch `index`, and how many the epoch has."""
        epoch, start = self._place(index)
        return index + 1 - start, self._ends[epoch] - start

    def note(self, progress: TrainProgress, index: int) -> None:
        """Writes down that batch `index` is done."""
        progress.epoch = bisect_right(self._ends, index + 1)
        done, whole = self.place_in_epoch(index)
        self._now = self._place(index)[0]
        samples = self._plan(self._now)[1]
        progress.seen, progress.seen_batches = (samples[done - 1], done) if done < whole else (0, 0)

    def describe(self, progress: TrainProgress) -> dict[str, Any]:
        """What `resume` compares: the settings that batches depend on, and the order of the epoch that is not over."""
        return {**self._settings, "order": self._order(progress.epoch)}

    def resume(self, progress: TrainProgress, before: dict[str, Any] | None) -> list[str]:
        """Goes on where a run stood.

        Args:
            progress: of the run, changed where its place in the epoch is another one now.
            before: what `describe` said when it was written; None for a backup that does not say.

        Returns:
            what is told to the user: what changed, and what that means.
        """
        if before is None:
            # of an older version, which knew a place by its step alone
            batch = min(progress.step * self._accumulation, self._ends[-1])
            self._continue_at(progress.step, batch)
            if batch:
                self.note(progress, batch - 1)
            return []
        if progress.epoch >= self.epochs:
            self._continue_at(progress.step, self._ends[-1])
            return []
        start = self._ends[progress.epoch - 1] if progress.epoch else 0
        now = self.describe(progress)
        same_order = before.get("order") == now["order"]
        if not same_order and progress.seen:
            progress.seen_batches, progress.seen = self._nearest(progress, before)
        self._continue_at(progress.step, start + progress.seen_batches)
        return self._told(progress, before, now, same_order)

    def _nearest(self, progress: TrainProgress, before: dict[str, Any]) -> tuple[int, int]:
        """Batches of the epoch, and their samples, that come next to what was seen of it, never more."""
        samples = self._plan(progress.epoch)[1]
        whole = before.get("samples of an epoch") or samples[-1]
        # with more or fewer images the same share of the epoch is over
        batches = bisect_right(samples, progress.seen * samples[-1] / whole)
        return batches, samples[batches - 1] if batches else 0

    def _told(
        self, progress: TrainProgress, before: dict[str, Any], now: dict[str, Any], same_order: bool
    ) -> list[str]:
        changes = [
            f"{name} from {before[name]} to {now[name]}"
            for name in self._settings
            if name in before and before[name] != now[name]
        ]
        if not changes and same_order:
            return []
        if not changes:
            changes = ["the order of the images"]
        text = (
            f"Changed since the backup: {', '.join(changes)}. The run goes on in epoch {progress.epoch + 1} of "
            f"{self.epochs} after {progress.seen} of its {now['samples of an epoch']} samples, and ends at step "
            f"{self.total_steps}."
        )
        if progress.seen and not same_order:
            text += " As the order in this epoch is another one, some of its images come twice and others not at all."
        return [text]

    def _place(self, index: int) -> tuple[int, int]:
        """The epoch of a batch, and the number of the epoch's first one."""
        epoch = bisect_right(self._ends, index)
        return epoch, self._ends[epoch - 1] if epoch else 0

    def _plan(self, epoch: int) -> tuple[list[PlannedBatch], list[int]]:
        if (found := self._planned.get(epoch)) is not None:
            return found
        with self._planning:
            if epoch not in self._planned:
                batches = self._data.plan(epoch)
                planned = batches, list(accumulate(len(batch.samples) for batch in batches))
                # where batches are read ahead, later epochs have begun
                kept = {other: known for other, known in self._planned.items() if other >= self._now}
                self._planned = {**kept, epoch: planned}
            return self._planned[epoch]

    def _order(self, epoch: int) -> str:
        """Names the batches of an epoch by which samples they hold, also of one that this run has not."""
        digest = hashlib.sha256()
        for batch in self._plan(epoch)[0]:
            digest.update(repr(_numbers(batch.samples)).encode())
        return digest.hexdigest()


def _numbers(samples: Sequence[Any]) -> list[tuple[int, int]]:
    return [(sample.image, sample.image_variation) for sample in samples]
