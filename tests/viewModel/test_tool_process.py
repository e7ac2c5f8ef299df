"""Processes of tools: what they say, how they are ended, and that nothing half written stays behind."""

import re
import signal
import subprocess
import threading
import time

from modules.util.UserError import UserError
from modules.viewModel import ToolProcess as tool_process
from modules.viewModel.ToolProcess import ROOT, ToolCancelled, ToolProcess, end_process

import pytest

# writes by the way that every file of the project is written, and stops in the midst of it
HALF_WAY = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from modules.util.atomic_file import write_bytes
def data():
    yield b"half"
    time.sleep(600)
write_bytes(sys.argv[1], data())
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script(text) -> name of a script of the project with this text."""
    (tmp_path / "scripts").mkdir()
    monkeypatch.setattr(tool_process, "ROOT", tmp_path)

    def write(text: str) -> str:
        (tmp_path / "scripts" / "made.py").write_text(text, encoding="utf-8")
        return "made.py"

    return write


@pytest.fixture
def background():
    """background(function) calls it on a thread and returns what gives its result or raises its error."""
    threads: list[threading.Thread] = []

    def run(function):
        found: list[object] = []

        def work() -> None:
            try:
                found.append(function())
            except Exception as error:
                found.append(error)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

        def result():
            threads[-1].join(60)
            if isinstance(found[0], Exception):
                raise found[0]
            return found[0]

        return result

    yield run
    for thread in threads:
        thread.join(60)


def until(done) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_what_a_script_prints_and_its_notes_are_returned(script):
    name = script(
        "import os, sys\nprint(sys.argv[1], os.getcwd())\n"
        "print('noise', file=sys.stderr)\nprint('note: mind this', file=sys.stderr)"
    )
    assert ToolProcess().run_script(name, "ä") == f"ä {tool_process.ROOT}\nnote: mind this"


def test_a_status_may_tell_what_was_found(script):
    name = script("import sys\nprint('a spread')\nsys.exit(1)")
    assert ToolProcess().run_script(name, accepted=(0, 1)) == "a spread"
    with pytest.raises(UserError, match="ended with status 1"):
        ToolProcess().run_script(name, accepted=(0, 2))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("print('noise', file=sys.stderr); print('error: no such file', file=sys.stderr); sys.exit(1)", "no such file"),
        ("import argparse; argparse.ArgumentParser().parse_args()", "unrecognized arguments: x"),
        ("raise ValueError('what happened')", "made.py ended with status 1.\nValueError: what happened"),
        ("import os; os.kill(os.getpid(), 15)", "made.py was ended from outside (signal 15)."),
        (
            "import os; os.kill(os.getpid(), 9)",
            "made.py was ended from outside (signal 9). The system may have",
        ),
    ],
)
def test_what_is_wrong_is_told(script, text, told):
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        ToolProcess().run_script(script(f"import sys\n{text}"), "x")


def test_a_process_that_is_ended_leaves_nothing_half_written(script, background, tmp_path):
    target, other = tmp_path / "adapter.safetensors", tmp_path / ".adapter.safetensors.of somebody else"
    target.write_bytes(b"old")
    other.write_bytes(b"kept")
    before = set(tmp_path.iterdir())
    process, name = ToolProcess(), script(HALF_WAY)
    result = background(lambda: process.run_script(name, str(target), target=target))
    until(lambda: set(tmp_path.iterdir()) - before)
    process.cancel()
    # whoever waits for `cancel` need not wait for the thread
    assert set(tmp_path.iterdir()) == before and target.read_bytes() == b"old" and not process.running
    with pytest.raises(ToolCancelled, match="Cancelled"):
        result()


def test_what_is_cancelled_before_it_starts_is_not_started(script, tmp_path):
    process, trace = ToolProcess(), tmp_path / "trace"
    process.cancel()
    with pytest.raises(ToolCancelled):
        process.run_script(script(f"open({str(trace)!r}, 'w')"))
    assert process.pid is None and not trace.exists()


def test_one_that_does_not_listen_is_killed():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)"
    process = ToolProcess().start("-c", f"{deaf}; time.sleep(600)", output=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == "ready\n"
        end_process(process, 0.2)
    assert process.returncode == -signal.SIGKILL


def test_it_tells_how_long_it_works(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tool_process.time, "monotonic", lambda: now[0])
    process, lines = ToolProcess(), []
    for seconds in (0.4, 1.9, 62):
        now[0] = 100 + seconds
        lines.append(process.line)
    assert lines == ["Working …", "Working … 1 s", "Working … 1 min 02 s"]
