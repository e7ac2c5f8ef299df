"""`scripts/train_ui.py`: a line where no window can be, one window for a folder, and nothing lost when it is ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# as somebody types, and then the system ends the program
EDIT = """
import modules.ui.App as ui

class Edited(ui.App):
    def __init__(self, root):
        super().__init__(root)
        self.after(300, self.edit)

    def edit(self):
        self.form.set_text("epochs", "7")
        # before it has settled
        print("edited", flush=True)

ui.App = Edited
"""


@pytest.fixture
def script(tmp_path) -> Path:
    """The script in a copy of the program, so that it keeps its files there."""
    for folder in ("modules", "training_presets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "scripts").mkdir()
    return Path(shutil.copy(ROOT / "scripts" / "train_ui.py", tmp_path / "scripts"))


@pytest.fixture
def screen() -> Iterator[str]:
    """A virtual display."""
    program = shutil.which("Xvfb")
    assert program, "the window is tested on a virtual display: install Xvfb (Debian, Ubuntu: apt install xvfb)"
    read, write = os.pipe()
    command = [program, "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as numbers:
            yield f":{numbers.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


def started(script: Path, display: str, before: str = "") -> subprocess.Popen:
    code = f"import sys, runpy; sys.path.insert(0, {str(script.parents[1])!r})\n{before}\n"
    code += f"sys.argv = [{str(script)!r}]; runpy.run_path({str(script)!r}, run_name='__main__')"
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    if display:
        environment["DISPLAY"] = display
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_without_a_screen_it_says_so_in_a_line(script):
    window = started(script, "")
    out, error = window.communicate(timeout=60)
    assert window.returncode == 1 and out == ""
    assert error.startswith("error: no window can be opened here: ") and len(error.splitlines()) == 1
    assert "scripts/train.py" in error


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_what_ends_it_loses_nothing_and_a_second_window_does_not_open(script, screen, name):
    window = started(script, screen, EDIT)
    try:
        assert window.stdout.readline() == "edited\n", window.stderr.read()
        if name == "SIGTERM":
            second = started(script, screen)
            _, error = second.communicate(timeout=60)
            assert second.returncode == 1
            assert error == f"The window is open already (process {window.pid}). Work in that one.\n"
        asked = time.monotonic()
        window.send_signal(getattr(signal, name))
        out, error = window.communicate(timeout=60)
        assert (window.returncode, out, error) == (0, "", ""), time.monotonic() - asked
    finally:
        window.kill()
    root = script.parents[1]
    kept = json.loads((root / "user_presets" / ".last_session.json").read_text(encoding="utf-8"))
    assert kept["epochs"] == 7
    assert json.loads((root / "ui_settings.json").read_text(encoding="utf-8"))["geometry"]
