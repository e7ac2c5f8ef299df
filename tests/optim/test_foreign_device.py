"""Every rule on a device that is not the CPU: nothing of the CPU is mixed in, no step waits, float64 if it has it."""

from scaled_optim import arithmetic
from scaled_optim.rules.registry import RULES
from tests.foreign_device import NAME, ForeignDevice
from tests.optim.test_contract import CASES, MODEL, backward, in_slice, model, optimizer_of

import torch
from torch import nn

import pytest

# one or two of each kind: what is tried is where tensors lie, not how many there are
FEW = tuple((role, shape, min(count, 2)) for role, shape, count in MODEL)
STEPS = 3
# Without a kernel of our own LoRA-RITE waits two or three times for the pairs of one shape, of which there are two: to
# find matrices without full rank, and as torch looks at the host whether each call for eigenvalues was right.
WAITS = {"LORA_RITE": 6}
# float32 sums in another order: on a CPU some rules take several operations in one pass
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        chosen = [case for case in CASES if case.dtype in TOLERANCE]
        if not metafunc.config.getoption("--long"):
            few = ("plain", "everything", "int8_sr", "centered-int4")
            chosen = [
                c for c in chosen if c.name in few and in_slice(c) and (c.dtype == torch.float32 or c.name == "plain")
            ]
        metafunc.parametrize("case", chosen, ids=str)


def moved(device: ForeignDevice, dtype: torch.dtype) -> list[nn.Parameter]:
    found = []
    for own in model(dtype, FEW):
        parameter = nn.Parameter(device.put(own))
        parameter.__dict__.update(own.__dict__)
        found.append(parameter)
    return found


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def device(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(arithmetic, "WITHOUT_FLOAT64", {NAME})
    return ForeignDevice(request.param)


def test_a_rule_steps_on_the_device_and_never_waits(case, device):
    here = model(case.dtype, FEW)
    optimizer = optimizer_of(case, here, kernels="never")
    with device:
        there = moved(device, case.dtype)
        foreign = optimizer_of(case, there, kernels="never")
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(here, step)
        optimizer.step()
        with device:
            for own, other in zip(here, there, strict=True):
                other.grad = None if own.grad is None else device.put(own.grad)
            # state is made in the first step, and in the second that of those which were absent
            with device.no_waits(WAITS.get(case.rule, 0) if step == STEPS - 1 else 20):
                foreign.step()
    for own, other in zip(here, there, strict=True):
        found, tolerance = device.taken(other.detach()), TOLERANCE[case.dtype]
        assert torch.allclose(found.float(), own.detach().float(), rtol=tolerance, atol=tolerance)


def test_the_device_tells_what_is_wrong():
    device = ForeignDevice(float64=False)
    with device:
        there = device.put(torch.ones(3))
        with pytest.raises(RuntimeError, match="a tensor of the CPU .* beside one of foreign"):
            there + torch.ones(3)
        assert torch.equal(device.taken(there + torch.tensor(2.0)), torch.full((3,), 3.0)), "numbers may be of the CPU"
        with pytest.raises(TypeError, match="float64 .* which has none"):
            there.double()
        with pytest.raises(AssertionError, match="waited 1 times"), device.no_waits():
            there.sum().item()
        made = torch.zeros(2, device=device.device)
        assert made.device == device.device and made.cpu().device.type == "cpu" and device.waits == 2


def test_every_rule_is_tried():
    assert {case.rule for case in CASES} == set(RULES)
