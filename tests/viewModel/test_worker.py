"""What takes long runs elsewhere, and its result comes to whoever polls."""

import gc
import threading
import time

from modules.viewModel.Worker import Worker

import pytest


def wait(worker: Worker) -> None:
    end = time.monotonic() + 10
    while worker.busy:
        worker.poll()
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_result_arrives_on_the_polling_thread():
    worker, seen = Worker(), []
    worker.run(threading.get_ident, lambda ident: seen.append((ident, threading.get_ident())), pytest.fail)
    assert worker.busy and not seen
    wait(worker)
    ((worked, delivered),) = seen
    assert delivered == threading.get_ident() != worked


def test_an_error_arrives_as_one():
    worker, seen = Worker(), []
    worker.run(lambda: 1 / 0, pytest.fail, seen.append)
    wait(worker)
    assert isinstance(seen[0], ZeroDivisionError)


class Circle:
    """Is freed by a collection only, and tells on which thread."""

    def __init__(self, freed: list[int]) -> None:
        self.itself, self.freed = self, freed

    def __del__(self) -> None:
        self.freed.append(threading.get_ident())


def test_garbage_is_collected_on_the_polling_thread():
    """A closed window has variables whose end Tk must hear on its own thread: another one waits a second for each."""
    worker, freed, results = Worker(), [], []
    go_on = threading.Event()

    def make_much() -> int:
        much = [[] for _ in range(100_000)]
        assert go_on.wait(10)
        return len(much)

    for _ in range(50):
        Circle(freed)
    already = len(freed)
    worker.run(make_much, results.append, pytest.fail)
    end = time.monotonic() + 10
    while len(freed) < 50:
        worker.poll()
        assert time.monotonic() < end
        time.sleep(0.001)
    assert not gc.isenabled()
    go_on.set()
    wait(worker)
    assert results == [100_000] and set(freed[already:]) == {threading.get_ident()}
    assert gc.isenabled()
