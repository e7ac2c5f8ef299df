"""What takes long runs elsewhere, and its result comes to whoever polls."""

import gc
import threading

from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish

import pytest


def test_a_result_arrives_on_the_polling_thread():
    worker, seen = Worker(), []
    worker.run(threading.get_ident, lambda ident: seen.append((ident, threading.get_ident())), pytest.fail)
    assert worker.busy and not seen
    finish(worker)
    ((worked, delivered),) = seen
    assert delivered == threading.get_ident() != worked


def test_an_error_arrives_as_one():
    worker, seen = Worker(), []
    worker.run(lambda: 1 / 0, pytest.fail, seen.append)
    finish(worker)
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
    finish(worker, lambda: len(freed) >= 50)
    assert not gc.isenabled()
    go_on.set()
    finish(worker)
    assert results == [100_000] and set(freed[already:]) == {threading.get_ident()}
    assert gc.isenabled()
