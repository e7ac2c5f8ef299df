"""The running average against its own formula."""

from modules.trainer import Ema as ema_module
from modules.trainer.Ema import Ema
from tests.foreign_device import ForeignDevice

import torch

import pytest


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def move(weights: list[torch.nn.Parameter], step: int) -> None:
    with torch.no_grad():
        for weight in weights:
            weight.add_(step * 0.1)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_decay_rises_to_its_limit(decay):
    weights = parameters()
    ema = Ema(weights, decay, 1, None)
    wanted = [weight.detach().double() for weight in weights]
    for step in range(1, 30):
        move(weights, step)
        ema.update(step)
        used = min(decay, step / (9 + step))  # (1 + n)/(10 + n) with n = step − 1 updates before
        wanted = [used * w + (1 - used) * weight.detach().double() for w, weight in zip(wanted, weights, strict=True)]
    for average, exact in zip(ema.averages, wanted, strict=True):
        # thirty roundings of float32
        assert torch.allclose(average.double(), exact, rtol=1e-5)


def test_the_first_update_forgets_the_start():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    ema = Ema(weights, 0.9999, 1, None)
    weights[0].data.fill_(1.0)
    ema.update(1)
    assert ema.averages[0].item() == pytest.approx(0.9)


def test_only_every_interval_th_step_counts():
    weights = parameters()
    ema = Ema(weights, 0.9, 3, None)
    before = [average.clone() for average in ema.averages]
    for step in (1, 2):
        move(weights, step)
        ema.update(step)
    assert all(torch.equal(a, b) for a, b in zip(before, ema.averages, strict=True)) and ema.updates == 0
    ema.update(3)
    assert ema.updates == 1 and not torch.equal(before[0], ema.averages[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_in_and_out_is_exact(dtype):
    weights = [torch.nn.Parameter(weight.detach().to(dtype)) for weight in parameters()]
    ema = Ema(weights, 0.9, 1, torch.device("cpu"))
    move(weights, 1)
    ema.update(1)
    own = [weight.detach().clone() for weight in weights]
    with ema.swapped_in():
        for weight, average, value in zip(weights, ema.averages, own, strict=True):
            assert torch.equal(weight, average.to(dtype)) and not torch.equal(weight, value)
    assert all(torch.equal(weight, value) for weight, value in zip(weights, own, strict=True))
    assert all(average.dtype == torch.float32 for average in ema.averages), "bfloat16 would swallow small changes"


def test_weights_come_back_after_an_error_inside():
    weights = parameters()
    ema = Ema(weights, 0.9, 1, None)
    move(weights, 2)
    own = [weight.detach().clone() for weight in weights]
    with pytest.raises(RuntimeError), ema.swapped_in():
        raise RuntimeError
    assert all(torch.equal(weight, value) for weight, value in zip(weights, own, strict=True))


def test_state_round_trip_continues_the_same_average():
    weights = parameters()
    ema = Ema(weights, 0.999, 1, None)
    for step in (1, 2):
        move(weights, step)
        ema.update(step)
    other = Ema(weights, 0.999, 1, None)
    other.load_state_dict(ema.state_dict())
    for one in (ema, other):
        one.update(3)
    assert other.updates == 3
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, other.averages, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 64, 1 << 20])
def test_many_at_once_give_the_bytes_of_one_after_the_other(monkeypatch, dtype, chunk):
    monkeypatch.setattr(ema_module, "CHUNK_BYTES", chunk)
    weights = [torch.nn.Parameter(weight.detach().to(dtype)) for weight in parameters() * 2]
    weights.append(torch.nn.Parameter(torch.randn(4, 3).t()))
    ema, wanted = Ema(weights, 0.9, 1, None), [weight.detach().float().clone() for weight in weights]
    for step in range(1, 4):
        move(weights, step)
        ema.update(step)
        for average, weight in zip(wanted, weights, strict=True):
            average.lerp_(weight.detach().float(), 1 - step / (9 + step))
    assert all(torch.equal(average, other) for average, other in zip(ema.averages, wanted, strict=True))


def test_an_average_on_the_cpu_waits_for_a_device_once_an_update():
    device, plain = ForeignDevice(), parameters()
    with device:
        weights = [torch.nn.Parameter(device.put(weight)) for weight in plain]
        ema, expected = Ema(weights, 0.9, 1, torch.device("cpu")), Ema(plain, 0.9, 1, None)
        for own in (weights, plain):
            move(own, 1)
        with device.no_waits(most=1):
            ema.update(1)
    expected.update(1)
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, expected.averages, strict=True))
