"""Threads of torch sleep while they wait, unless the user says otherwise, and before torch is loaded."""

import subprocess
import sys
from pathlib import Path

from modules.util.openmp import CHOICES, SHORT, wait_asleep

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_waiting_threads_sleep_after_a_moment():
    environment = {"OTHER": "1"}
    wait_asleep(environment)
    assert environment == {"OTHER": "1", **SHORT} and {*SHORT} < {*CHOICES}


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_user_has_set_stays(name):
    environment = {name: "7"}
    wait_asleep(environment)
    assert environment == {name: "7"}


@pytest.mark.parametrize("script", ["train", "sample"])
def test_scripts_say_it_before_torch_is_loaded(script):
    told = "print('sleep', 'torch' in sys.modules)"
    code = (
        "import runpy, sys; import modules.util.openmp as openmp; "
        f"openmp.wait_asleep = lambda: {told}; runpy.run_path('scripts/{script}.py', run_name='loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["sleep False"], done.stderr
