"""A script that is forked finds what one finds that is started, and is a process like any other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests import forked_scripts as module

import psutil
import pytest

TELLS = """
import json, os, sys
print("typed:", sys.stdin.read())
print(json.dumps({
    "name": __name__, "file": __file__, "argv": sys.argv, "first": sys.path[0], "cwd": os.getcwd(),
    "env": dict(os.environ), "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "beside": __import__("beside").VALUE, "encoding": sys.stdout.encoding, "buffered": sys.stdout.write_through,
    "main": __import__("__main__").__file__,
}, sort_keys=True))
print("a word", file=sys.stderr)
import atexit
atexit.register(print, "at its end")
raise SystemExit(int(sys.argv[1]))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere scripts are started as always")


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script(text) -> the command of a script of that text, which counts as one of the project."""
    monkeypatch.setattr(module, "SCRIPTS", tmp_path)
    (tmp_path / "beside.py").write_text("VALUE = 5", encoding="utf-8")

    def make(text: str) -> list[str]:
        path = tmp_path / "script.py"
        path.write_text(text, encoding="utf-8")
        return [sys.executable, str(path)]

    return make


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_it_finds_what_a_started_one_finds(script_server, script, tmp_path, status, unbuffered):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    options = {
        "input": "ä", "capture_output": True, "text": True, "encoding": "utf-8", "cwd": folder,
        "env": {**os.environ, "SECRET": "5", "PYTHONUNBUFFERED": unbuffered}, "start_new_session": bool(status),
    }  # fmt: skip
    command = [*script(TELLS), str(status), "two words"]
    started = subprocess.run(command, **options)
    with script_server.used():
        forked = subprocess.run(command, **options)
    assert forked.returncode == started.returncode == status
    # the libraries set some for themselves when they are imported
    assert forked.stdout == started.stdout and json.loads(forked.stdout.splitlines()[1])["env"]["SECRET"] == "5"
    assert forked.stderr == started.stderr == "a word\n"
    assert forked.stdout.endswith("at its end\n")


def test_it_can_be_watched_signalled_and_killed(script_server, script):
    command = script("import torch, sys, time\nprint(torch.get_num_threads(), flush=True)\ntime.sleep(600)")
    with script_server.used():
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process, number in zip(processes, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT), strict=True):
        assert process.stdout.readline() == "1\n" and process.poll() is None
        own = psutil.Process(process.pid)
        assert own.ppid() == os.getpid(), "its end is told to this process"
        process.send_signal(number)
        assert process.wait(30) == -number
        assert not own.is_running()
        process.stdout.close()


def test_what_breaks_is_told_and_nothing_else_is_forked(script_server, script):
    with script_server.used():
        broken = subprocess.run(script("raise KeyError('x')"), capture_output=True, text=True)
        other = subprocess.run([sys.executable, "-c", "import sys; print('torch' in sys.modules)"], capture_output=True)
    assert broken.returncode == 1 and broken.stderr.endswith("KeyError: 'x'\n")
    assert other.stdout == b"False\n"
    assert "Forked" not in subprocess.Popen.__name__ and Path(module.ROOT, "scripts").is_dir()
