"""Optimizers that processes share, or whose weights they hold in parts: what one process would have, to the bit."""

from pathlib import Path

from tests.optim.shared_steps import OPTIMIZERS, optimizer, parameters
from tests.torchrun import in_processes

import pytest

# a number by which rows do not divide evenly, and of which some processes have none
PROCESSES = 3
# they step some parameters as rows, without bringing them together; of Stiefel-LoRA its auxiliary AdamW does
ROWWISE = ("LION_ADV", "STIEFEL_LORA")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    """What each of so many processes says, by its rank."""
    folder = tmp_path_factory.mktemp("shared")
    return in_processes(Path(__file__).with_name("shared_steps.py"), folder, PROCESSES)


@pytest.mark.parametrize("how", ["shared", "in parts"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_parameters_state_and_statistics_are_those_of_one_process(told, rule, how):
    assert all(own[rule][how]["same statistics"] for own in told)
    # kernels step the last numbers of a row one by one, in another order of operations than whole vectors of them
    most = 3e-8 if how == "in parts" and rule in ROWWISE else 0.0
    assert max(own[rule][how]["differs"] for own in told) <= most


@pytest.mark.parametrize("how", ["shared", "in parts"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_state_is_held_once_by_all_together(told, rule, how):
    held = [own[rule][how]["held"] for own in told]
    # a number for a whole parameter, as what it owes of decay, is with each process' rows
    assert told[0][rule][how]["all"] <= sum(held) < 1.05 * told[0][rule][how]["all"]
    # by elements; state of some parameters is larger than of others
    assert max(held) < 1.6 * sum(held) / len(told)


def test_what_cant_be_shared_is_told(told):
    for own in told:
        fused, copied, in_parts, placed = own["refused"]
        assert placed.startswith("a DTensor: found it placed as") and in_parts == fused
        assert fused.startswith("shared: found a fused backward pass")
        assert copied.startswith("shared: found an optimizer that several processes share")


def test_without_processes_nothing_is_shared():
    with pytest.raises(ValueError, match="shared: found no processes"):
        optimizer(parameters(), "ADAMW_ADV", shared=True)
