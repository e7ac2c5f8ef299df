"""What takes long runs elsewhere, and its result comes to whoever polls."""

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
