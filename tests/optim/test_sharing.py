"""Optimizers that real processes share: each steps a part, and all have what one process would have, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.optim.shared_steps import OPTIMIZERS, optimizer, parameters

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[2, 4])
def told(request, tmp_path_factory) -> list[dict]:
    """What each of so many processes says, by its rank."""
    folder = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scaled-optim")]),
    }  # fmt: skip
    script = ROOT / "tests" / "optim" / "shared_steps.py"
    done = subprocess.run([*command, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_parameters_and_state_are_those_of_one_process(told, rule):
    assert [own[rule]["same"] for own in told] == [True] * len(told)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_state_is_shared_out(told, rule):
    held = [own[rule]["held"] for own in told]
    assert sum(held) == told[0][rule]["all"]
    # by elements; state of some parameters is larger than of others
    assert max(held) < 1.6 * sum(held) / len(told)


def test_what_cant_be_shared_is_told(told):
    for own in told:
        prodigy, fused, copied = own["refused"]
        assert prodigy.startswith("shared: PRODIGY_ADV measures all parameters together")
        assert fused.startswith("shared: found a fused backward pass")
        assert copied.startswith("shared: found an optimizer that several processes share")


def test_without_processes_nothing_is_shared():
    with pytest.raises(ValueError, match="shared: found no processes"):
        optimizer(parameters(), "ADAMW_ADV", shared=True)
