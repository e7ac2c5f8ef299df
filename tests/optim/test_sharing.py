"""Optimizers that real processes share: each steps a part, and all have what one process would have, to the bit."""

from pathlib import Path

from tests.optim.shared_steps import OPTIMIZERS, optimizer, parameters
from tests.torchrun import in_processes

import pytest


@pytest.fixture(scope="module", params=[2, 4])
def told(request, tmp_path_factory) -> list[dict]:
    """What each of so many processes says, by its rank."""
    folder = tmp_path_factory.mktemp("shared")
    return in_processes(Path(__file__).with_name("shared_steps.py"), folder, request.param)


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
