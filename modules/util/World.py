"""The processes of one run, and what they tell each other. Built on torch.distributed."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

from modules.util.UserError import UserError

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Value = TypeVar("Value")

PATIENCE = timedelta(days=30)
"""How long processes wait for one another. One may draw samples for hours; one that has ended is noticed at once."""

WORDS = timedelta(seconds=2)
"""How long the last words of a process that has ended are waited for."""

FAILURE = "failure"
"""Where in the run's store the first process that fails writes why."""


class LostProcess(UserError):
    """Another process of the run has ended, so that this one can't go on."""


class EndedElsewhere(UserError):
    """Another process has said why the run ends; nothing is left to say."""


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun, or a launcher like it, has started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class World:
    """The processes of one run, each with a device of its own. A run of one process is a world of one.

    Every process has to call the same methods in the same order, but for `tell_failure` and `last_words`.

    Attributes:
        rank: number of this process, from 0. The one of number 0 leads: it alone logs, draws and saves.
        size: how many processes there are.
        place: number of this process on its machine, from 0.
        pids: process ids by rank, of whatever machine.

    Raises (all methods): LostProcess, if another process has ended. EndedElsewhere, where the leader's failed.
    """

    def __init__(self, rank: int = 0, size: int = 1, place: int = 0) -> None:
        self.rank, self.size, self.place = rank, size, place
        self.pids: list[int] = [os.getpid()]
        # of numbers on the host; that of the device may be another backend's
        self._host: dist.ProcessGroup | None = None
        self._store: dist.Store | None = None

    @classmethod
    def join(cls, device_type: str) -> Self:
        """The world that the environment names (`RANK`, `WORLD_SIZE` …, as torchrun sets them), else one of one.

        Args:
            device_type: where the run trains. GPUs of NVIDIA and AMD exchange numbers by NCCL where it is there.
        """
        if not started_by_torchrun():
            return cls()
        rank = int(os.environ["RANK"])
        world = cls(rank, int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", rank)))
        by_nccl = device_type == "cuda" and dist.is_nccl_available()
        with _words_for_lost():
            store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
            world._store = dist.PrefixStore("run", store)
            dist.init_process_group(
                "nccl" if by_nccl else "gloo", timeout=PATIENCE, store=store, rank=rank, world_size=size
            )
            world._host = dist.new_group(backend="gloo", timeout=PATIENCE) if by_nccl else dist.group.WORLD
            world.pids = world.gather(os.getpid())
        return world

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def leave(self) -> None:
        """Ends the exchange, where all have come to the end of the run."""
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()

    # -- what all do together -----------------------------------------------------------------------------------------

    def own(self, items: Sequence[Value]) -> Sequence[Value]:
        """This process' share of a list of which each process does a part."""
        return items[self.rank :: self.size]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag whether any process has it set."""
        if self.alone:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        with _words_for_lost():
            dist.all_reduce(values, dist.ReduceOp.MAX, self._host)
        return [bool(value) for value in values.tolist()]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, written to `values`, on whatever device."""
        if not self.alone:
            with _words_for_lost():
                dist.all_reduce(values, group=self._host if values.device.type == "cpu" else None)
        return values

    def gather(self, value: Value) -> list[Value]:
        """What each process has, by its rank. Values are pickled: only what processes of this run have made."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        with _words_for_lost():
            dist.all_gather_object(found, value, self._host)
        return found

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.any_of([False])

    def from_leader(self, make: Callable[[], Value]) -> Value:
        """What the leader makes; the others get a copy, or end with it where it fails."""
        if self.alone:
            return make()
        made: Value | None = None
        with self._leader_first() as does:
            if does:
                made = make()
        with _words_for_lost():
            values = [made]
            dist.broadcast_object_list(values, 0, self._host)
        return made if self.leads else values[0]

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader does what is inside before the others do; where it fails, they end with it."""
        with self._leader_first() as does:
            if does:
                yield
        if not does:
            yield

    @contextlib.contextmanager
    def _leader_first(self) -> Iterator[bool]:
        """Gives whether this process is the one that does it; what it raises ends the others, too."""
        if self.alone or not self.leads:
            if not self.alone and self._failed_in_leader(False):
                raise EndedElsewhere("")
            yield self.alone
            return
        try:
            yield True
        except BaseException:
            with contextlib.suppress(LostProcess):
                self._failed_in_leader(True)
            raise
        self._failed_in_leader(False)

    def _failed_in_leader(self, failed: bool) -> bool:
        return self.any_of([failed])[0]

    # -- how it ends --------------------------------------------------------------------------------------------------

    def tell_failure(self, text: str) -> bool:
        """Leaves word why this process ends the run. False if another has done so before, which then tells it."""
        if self._store is None:
            return True
        word = f"{self.rank} {text}"
        try:
            return self._store.compare_set(FAILURE, "", word) == word.encode()
        except RuntimeError:
            # the store has ended with the process that kept it
            return True

    def last_words(self) -> str:
        """Why the run ends, as another process has told it; empty if none has."""
        if self._store is None:
            return ""
        try:
            self._store.wait([FAILURE], WORDS)
            return self._store.get(FAILURE).decode().partition(" ")[2]
        except RuntimeError:
            return ""


ALONE = World()


@contextlib.contextmanager
def _words_for_lost() -> Iterator[None]:
    """What torch raises where a process does not answer any more, in our words."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> LostProcess:
    return LostProcess(f"Another process of this run has ended: {str(error).splitlines()[0]}")


@contextlib.contextmanager
def exchange() -> Iterator[None]:
    """Around torch's own exchanges, as that of gradients: a lost process is told as such."""
    if not dist.is_initialized():
        yield
        return
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if any(word in text for word in ("gloo", "connection", "nccl", "peer")):
            raise _lost(error) from error
        raise
