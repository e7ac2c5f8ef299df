"""Workers of a pool end with the program that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys, time
from pathlib import Path
from benchmarks.pool import answer

def train(trial):
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    answer([lambda: [1, 2]], train, print, 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system of processes as Linux does")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_program(tmp_path, sent):
    program, marks = tmp_path / "program.py", tmp_path / "marks"
    program.write_text(PROGRAM, encoding="utf-8")
    marks.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = subprocess.Popen([sys.executable, str(program), str(marks)], env=environment, cwd=tmp_path)
    try:
        workers = _until(lambda: [int(mark.name) for mark in marks.iterdir()], 2)
        started.send_signal(sent)
        started.wait(20)
        _until(lambda: [worker for worker in workers if not _runs(worker)], 2)
    finally:
        started.kill()


def _until(found, count, seconds=120):
    end = time.monotonic() + seconds
    while len(found()) < count:
        assert time.monotonic() < end
        time.sleep(0.1)
    return found()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # one that has ended and that nobody has asked for its result yet
    return "\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8").partition("State:")[2][:4]
