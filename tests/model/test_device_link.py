"""The order of copies on streams. The streams are played: one runs as late as it may, or another as early as it can."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modules.model.DeviceLink import DeviceLink, StreamLink, device_link

import torch
from torch import Tensor

import pytest

CPU = torch.device("cpu")


class PlayedEvent:
    def __init__(self, stream: "PlayedStream") -> None:
        self.stream, self.place = stream, len(stream.work)


class PlayedStream:
    """Work that is done when the test says so, in its order; what it waits for is done before."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def run(self, place: int | None = None) -> None:
        while self.done < (len(self.work) if place is None else place):
            self.done += 1
            self.work[self.done - 1]()

    def record_event(self) -> PlayedEvent:
        return PlayedEvent(self)

    def wait_event(self, event: PlayedEvent) -> None:
        self.work.append(lambda: event.stream.run(event.place))

    def wait_stream(self, other: "PlayedStream") -> None:
        self.wait_event(other.record_event())


@pytest.fixture
def computing(monkeypatch) -> PlayedStream:
    """The stream that computes. Copies inside of `torch.cuda.stream` are done by that stream."""
    current = [PlayedStream()]
    copy = Tensor.copy_

    @contextmanager
    def inside(stream: PlayedStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def later(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert len(current) == 1 or non_blocking
        current[-1].work.append(lambda: copy(target, source))
        return target

    monkeypatch.setattr(torch.cuda, "Stream", PlayedStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(Tensor, "copy_", later)
    return current[0]


def writes(tensor: Tensor, value: float) -> Callable[[], object]:
    return lambda: tensor.fill_(value)


def test_what_is_sent_was_computed_before(computing):
    link, tensor = StreamLink(CPU, CPU), torch.zeros(3)
    computing.work.append(writes(tensor, 1.0))
    transfer = link.send(tensor)
    assert transfer.source is tensor
    link._sending.run()
    assert tensor.tolist() == [1.0] * 3, "it is computed before it is read"
    (away,) = transfer.wait()
    assert transfer.source is None
    # the memory is someone else's now
    computing.work.append(writes(tensor, 9.0))
    computing.run()
    assert away.tolist() == [1.0] * 3 and tensor.tolist() == [9.0] * 3


def test_sending_is_over_before_the_memory_is_used_again(computing):
    link, tensor = StreamLink(CPU, CPU), torch.ones(3)
    (away,) = link.send(tensor).wait()
    computing.work.append(writes(tensor, 9.0))
    computing.run()
    assert away.tolist() == [1.0] * 3


def test_a_copy_is_there_when_it_is_read_and_not_written_before_its_memory_is_free(computing):
    link, log = StreamLink(CPU, CPU), []
    computing.work.append(lambda: log.append("whoever had the memory"))
    transfer = link.fetch([torch.ones(3)])
    (copy,) = transfer.copies
    copy.fill_(float("nan"))
    computing.work.append(lambda: log.append(copy.isnan().all()))
    transfer.wait()
    computing.work.append(lambda: log.append(copy.tolist()))
    link._fetching.run()
    assert log == ["whoever had the memory"], "the copy waits for what was computed before, and for no more"
    assert copy.tolist() == [1.0] * 3
    computing.run()
    assert log[2] == [1.0] * 3


def test_reading_waits_for_the_copy(computing):
    link, read = StreamLink(CPU, CPU), []
    transfer = link.fetch([torch.ones(3)])
    (copy,) = transfer.copies
    copy.fill_(float("nan"))
    transfer.wait()
    computing.work.append(lambda: read.extend(copy.tolist()))
    computing.run()
    assert read == [1.0] * 3


def test_a_copy_that_nobody_wanted_is_over_before_its_memory_is_used_again(computing):
    link = StreamLink(CPU, CPU)
    transfer = link.fetch([torch.ones(3)])
    (memory,) = transfer.copies
    del transfer
    computing.work.append(writes(memory, 9.0))
    computing.run()
    link._fetching.run()
    assert memory.tolist() == [9.0] * 3


def test_what_was_sent_is_home_before_it_is_fetched(computing):
    link, read = StreamLink(CPU, CPU), []
    sent = link.send(torch.ones(3))
    (away,) = sent.copies
    away.fill_(float("nan"))
    (copy,) = link.fetch([away]).wait()
    computing.work.append(lambda: read.extend(copy.tolist()))
    computing.run()
    assert read == [1.0] * 3


def test_streams_are_for_cuda_and_for_those_who_want_them():
    assert type(device_link(CPU, CPU, True)) is DeviceLink
    assert type(device_link(torch.device("cuda", 0), CPU, False)) is DeviceLink
    assert not DeviceLink.overlaps and StreamLink.overlaps
