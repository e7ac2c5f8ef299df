"""The script that installs and starts: what a half-made environment and a Python without tkinter lead to."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# stands for a Python: makes no whole environment, and has no tkinter
NO_VENV = '#!/bin/sh\n[ "$1" = -c ] && exit 0\necho made >>made\nmkdir -p .venv/bin\ncp "$0" .venv/bin/python\nexit 1\n'
NO_TKINTER = '#!/bin/sh\n[ "$1" = -c ] && exit 1\necho "$@"\n'


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copy(ROOT / "run-cmd.sh", tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def start(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [folder / "run-cmd.sh", "train_ui"], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_half_an_environment_is_not_taken_for_a_whole_one(folder):
    python = write(folder / "python", NO_VENV)
    for starts in (1, 2):
        ended = start(folder, PYTHON=str(python))
        assert ended.returncode == 1 and "apt install python3-venv" in ended.stderr
        assert (folder / "made").read_text().count("made") == starts, "it is made anew each time"


def test_a_python_without_tkinter_is_told_before_anything_is_installed(folder):
    write(folder / ".venv" / "bin" / "python", NO_TKINTER)
    ended = start(folder)
    assert ended.stdout == "scripts/train_ui.py\n" and not (folder / ".venv" / "torch-build").exists()
