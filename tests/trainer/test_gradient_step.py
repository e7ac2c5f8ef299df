"""A step reads its numbers when everything is queued; one that is not finite ends the run and reaches no file."""

from pathlib import Path

from modules.trainer.GradientStep import GradientStep
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.foreign_device import ForeignDevice

import torch

import pytest

ENGINE = {"optimizer": "ADAMW_ADV"}
LIVE = {"backup_after": 1, "backup_after_unit": "STEP", "epochs": 1}
KINDS = {
    "accumulated and averaged": {
        "gradient_accumulation_steps": 2, "ema": "GPU", "ema_update_step_interval": 1, "optimizer": ENGINE,
    },
    "fused": {"optimizer": {**ENGINE, "fused_back_pass": True}, "clip_grad_norm": None},
    # its matrices of NaN can't be decomposed
    "stiefel": {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL"},
}  # fmt: skip


def weights(device: ForeignDevice) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(device.put(torch.ones(3, 2)))]


def made(parameters: list, **options) -> tuple[GradientStep, torch.optim.Optimizer]:
    config = TrainConfig.from_dict({"train_dtype": "FLOAT_32", **options})
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    return GradientStep(config, optimizer, parameters, parameters[0].device, Path("backup")), optimizer


@pytest.mark.parametrize("name", KINDS)
def test_a_step_that_is_not_finite_is_named_and_changes_no_file(make_run, name):
    run = make_run()
    options = {**LIVE, **KINDS[name]}
    run.train(1, **options)
    kept, written = [path.name for path in run.backups()], run.output.read_bytes()
    with pytest.raises(UserError, match=r"The loss of step 2 is not finite \(batch: .*\.png.*\)"):
        run.train(**{**options, "mse_strength": 1e39, "continue_last_backup": True})
    assert [path.name for path in run.backups()] == kept and run.output.read_bytes() == written


def test_the_host_waits_when_the_step_is_queued():
    device = ForeignDevice(float64=False)
    with device:
        parameters = weights(device)
        own, optimizer = made(parameters, clip_grad_norm=1.0)
        with device.no_waits():
            loss = own.backward(parameters[0].sum(), 1, ["a.png"])
            numbers = own.apply(loss, 1, ["a.png"])
        assert parameters[0].grad is None
        with device.no_waits(most=1):
            loss, norm = own.read(numbers, 1, ["a.png"])
    assert loss == 6.0 and norm == pytest.approx(6**0.5)
    torch.testing.assert_close(device.taken(parameters[0].data), torch.full((3, 2), 1 - 0.5 / 6**0.5))


@pytest.mark.parametrize("overflow", [False, True])
def test_with_half_precision_it_waits_once_and_an_overflow_leaves_the_step_out(overflow):
    # torch's scaler asks for float64
    device = ForeignDevice()
    with device:
        parameters = weights(device)
        own, optimizer = made(parameters, train_dtype="FLOAT_16", clip_grad_norm=None)
        before = own.scaler.get_scale()
        factor = torch.tensor(3e38 if overflow else 1.0)
        with device.no_waits(most=1 + overflow):
            loss = torch.zeros_like(own.backward((parameters[0] * factor).sum(), 1, ["a.png"]))
            numbers = own.apply(loss, 1, ["a.png"])
            _, norm = own.read(numbers, 1, ["a.png"])
        after = own.scaler.get_scale()
    assert (norm == float("inf")) == overflow
    assert torch.equal(device.taken(parameters[0].data), torch.full((3, 2), 1.0 if overflow else 0.5))
    assert after == (before / 2 if overflow else before)


def test_overflows_that_never_end_stop_the_run():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    own, _ = made(parameters, train_dtype="FLOAT_16", clip_grad_norm=None)
    with pytest.raises(UserError, match="The gradient of step 40 is not finite"):
        for _ in range(100):
            loss = torch.zeros_like(own.backward((parameters[0] * float("inf")).sum(), 40, []))
            own.apply(loss, 40, [])


def test_another_failure_keeps_its_own_words():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    own, optimizer = made(parameters)
    optimizer.step = lambda: (_ for _ in ()).throw(RuntimeError("the kernel is missing"))
    with pytest.raises(RuntimeError, match="the kernel is missing"):
        own.apply(own.backward(parameters[0].sum(), 1, []), 1, [])
