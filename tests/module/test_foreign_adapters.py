"""Adapters on a device that is not the CPU: nothing of the CPU is mixed in, nothing waits, nothing is copied there."""

from modules.model.QuantizedLinear import WEIGHT_CODECS, QuantizedLinear
from modules.module.AdapterSet import AdapterSet
from scaled_optim import arithmetic
from tests.foreign_device import NAME, ForeignDevice
from tests.module.test_adapter_contract import KINDS, LAYERS, Root, config_of, error, make, move

import torch
from torch import Tensor, nn

import pytest

FEW = ("linear", "conv 3x3", "conv grouped")
FORMATS = [*WEIGHT_CODECS, torch.bfloat16]


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def device(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(arithmetic, "WITHOUT_FLOAT64", {NAME})
    return ForeignDevice(request.param)


def put(root: nn.Module, device: ForeignDevice) -> nn.Module:
    """A component with its weights and buffers on the device, as `to` brings them there."""
    for module in root.modules():
        for name, own in module._parameters.items():
            if own is not None:
                module._parameters[name] = nn.Parameter(device.put(own), own.requires_grad)
        for name, own in module._buffers.items():
            if own is not None:
                module._buffers[name] = device.put(own)
    return root


def stepped(root: Root, adapters: AdapterSet, x: Tensor, device: ForeignDevice | None = None) -> list[Tensor]:
    """The output, and the gradients of the input and of what is trained."""
    move(adapters).hook()
    x = x.requires_grad_()
    counts = (device.waits, device.sent) if device else None
    for _ in range(2):
        # what is made at the first call is there at the second
        y = root(x)
        (y * torch.linspace(-1, 1, y.shape[-1], device=y.device, dtype=y.dtype)).sum().backward()
        before, counts = counts, (device.waits, device.sent) if device else None
    assert counts == before, "waits for the device, and copies from the CPU"
    return [y, x.grad, *(parameter.grad for parameter in adapters.parameters())]


def compare(kind: str, here: tuple, root: nn.Module, x: Tensor, device: ForeignDevice, tolerance: float) -> None:
    with device:
        put(root, device)
        there = AdapterSet("unet", root, config_of(kind), seed=3)
        assert all(own.device == device.device for own in there.parameters())
        found = stepped(root, there, device.put(x), device)
    for own, other in zip(found, here, strict=True):
        assert own.device == device.device and error(device.taken(own).float(), other.float()) < tolerance


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind, name, device):
    root, adapters, x = make(kind, name)
    again, _, _ = make(kind, name)
    # float32 sums in another order, where a CPU has a way of its own
    compare(kind, stepped(root, adapters, x.clone()), again, x, device, 1e-4)


@pytest.mark.parametrize("weights", FORMATS, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("plain")])
def test_every_format_of_frozen_weights(kind, weights, device):
    def built() -> Root:
        torch.manual_seed(2)
        layer = nn.Linear(64, 128).requires_grad_(False)
        return Root(layer.to(weights) if isinstance(weights, torch.dtype) else QuantizedLinear(layer, weights))

    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(4))
    x = x.to(weights) if isinstance(weights, torch.dtype) else x
    root = built()
    here = stepped(root, AdapterSet("unet", root, config_of(kind), seed=3), x.clone())
    compare(kind, here, built(), x, device, 0.02 if weights == torch.bfloat16 else 1e-4)


def test_the_layers_are_there():
    assert set(FEW) <= set(LAYERS)
