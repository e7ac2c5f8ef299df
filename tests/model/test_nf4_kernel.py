"""A kernel of a library unpacks NF4 only where it gives our numbers; everything else falls back to our arithmetic."""

from modules.model import QuantizedLinear as layers
from modules.model import nf4_kernel as module
from modules.model.nf4_kernel import Kernel, bitsandbytes_kernel, kernel_problem, nf4_kernel
from modules.model.QuantizedLinear import WEIGHT_CODECS, QuantizedLinear, kernel_note, unpacked_nf4
from modules.trainer.checks import open_model
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.MemoryProbe import MemoryProbe

import torch
from torch import Tensor, nn

import pytest

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_bitsandbytes_gives_our_numbers():
    """Its kernel for CPUs here, which has the same interface."""
    pytest.importorskip("bitsandbytes.functional")
    assert kernel_problem(bitsandbytes_kernel, unpacked_nf4, CPU) == ""


def swapped(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    bytes_ = codes.view(torch.uint8)
    return unpacked_nf4(((bytes_ & 15) << 4 | bytes_ >> 4).view(torch.int8), scale, dtype)


def failing(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    raise RuntimeError("no kernel image is available for execution on the device\nmore")


WRONG = {
    "other order": (swapped, "its numbers differ by more than 2e-07"),
    "no kernel": (failing, "it failed with RuntimeError: no kernel image is available"),
    "other scales": (lambda c, s, d: unpacked_nf4(c, s * 1.02, d), "its numbers differ"),
    "wrong in bfloat16 alone": (
        lambda c, s, d: unpacked_nf4(c, s * (1.02 if d == torch.bfloat16 else 1), d), "than 0.008 in torch.b"
    ),
    "NaN": (lambda c, s, d: unpacked_nf4(c, s, d) * float("nan"), "its numbers differ"),
    "turned": (lambda c, s, d: unpacked_nf4(c, s, d).t(), "it gave [256, 64]"),
    "other dtype": (lambda c, s, d: unpacked_nf4(c, s, d).double(), "of torch.float64, expected"),
}  # fmt: skip


@pytest.mark.parametrize(("kernel", "words"), WRONG.values(), ids=WRONG)
def test_wrong_kernels_are_recognised(kernel, words):
    problem = kernel_problem(kernel, unpacked_nf4, CPU)
    assert words in problem and "\n" not in problem


def test_a_kernel_that_can_not_be_used_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(module, "kernel_problem", lambda kernel, own, device: "it failed")
    kernel, line = nf4_kernel.__wrapped__(CUDA, unpacked_nf4)
    assert kernel is None and "plain torch" in line and line.endswith("can't be used: it failed.")
    monkeypatch.setattr(module, "kernel_problem", lambda kernel, own, device: "")
    kernel, line = nf4_kernel.__wrapped__(CUDA, unpacked_nf4)
    assert kernel is bitsandbytes_kernel and "bitsandbytes' kernel" in line


def test_nothing_is_tried_or_told_on_a_cpu():
    assert nf4_kernel(CPU, unpacked_nf4) == (None, "") and kernel_note(DataType.NFLOAT_4, CPU) == ""


def test_a_layer_uses_the_kernel_in_forward_and_backward(monkeypatch):
    used = []

    def kernel(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        used.append(dtype)
        return unpacked_nf4(codes, scale, dtype)

    layer, x = QuantizedLinear(nn.Linear(64, 8), DataType.NFLOAT_4), torch.randn(2, 64, requires_grad=True)
    expected = layer(x)
    monkeypatch.setitem(layers.NF4_UNPACKERS, CPU, kernel)
    found = layer(x)
    found.sum().backward()
    assert torch.equal(found, expected) and used == [torch.float32] * 2


def test_a_kernel_is_chosen_once_for_a_device_and_not_in_compiled_code(monkeypatch):
    def kernel(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return unpacked_nf4(codes, scale, dtype)

    def chosen(device: torch.device, own: Kernel) -> tuple[Kernel | None, str]:
        tried.append(device)
        return None if kernel_problem(kernel, own, device) else kernel, "a line"

    tried: list[torch.device] = []
    monkeypatch.setattr(layers, "nf4_kernel", chosen)
    monkeypatch.setattr(layers, "NF4_UNPACKERS", {})
    model = nn.Sequential(*(QuantizedLinear(nn.Linear(64, 64), DataType.NFLOAT_4) for _ in range(2)))
    assert tried == [CPU] and layers.NF4_UNPACKERS == {CPU: kernel}
    layers.NF4_UNPACKERS.clear()
    model.to(CPU)
    x = torch.randn(2, 64, requires_grad=True)
    # every break is an error
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    found.sum().backward()
    assert torch.equal(found, model(x)) and len(tried) == 2
    assert kernel_note(DataType.NFLOAT_4, CPU) == "a line" and kernel_note(DataType.INT_8, CPU) == ""


def test_a_run_tells_it_once(mini_run, monkeypatch):
    monkeypatch.setattr(layers, "nf4_kernel", lambda device, own: (None, "a line"))
    told: list[str] = []
    options = mini_run.options(unet={"weight_dtype": "NFLOAT_4"})
    open_model(TrainConfig.from_dict(options), CPU, told.append)
    assert told.count("a line") == 1
    told.clear()
    open_model(TrainConfig.from_dict(mini_run.options()), CPU, told.append)
    assert "a line" not in told


@pytest.mark.parametrize("data_type", list(WEIGHT_CODECS))
def test_temporaries_are_no_larger_than_the_layer(data_type, monkeypatch):
    monkeypatch.setattr(layers, "SLICE", 1 << 14)
    source = nn.Linear(512, 512, bias=False).to(torch.bfloat16)
    QuantizedLinear(nn.Linear(64, 8), data_type).dense(torch.bfloat16)  # tables that are made once
    with MemoryProbe() as packing:
        layer = QuantizedLinear(source, data_type)
    # codes twice while slices are joined, and some float32 slices
    assert packing.peak <= source.weight.nbytes + 12 * 4 * (1 << 14)
    with MemoryProbe() as unpacking:
        weight = layer.dense(torch.bfloat16)
    assert weight.nbytes <= unpacking.peak <= 2 * weight.nbytes + 4 * layer.scale.nbytes


def test_slices_are_packed_as_the_whole(monkeypatch):
    source = nn.Linear(128, 96, bias=False)
    for data_type in WEIGHT_CODECS:
        whole = QuantizedLinear(source, data_type)
        monkeypatch.setattr(layers, "SLICE", 128 * 7)
        parts = QuantizedLinear(source, data_type)
        monkeypatch.undo()
        assert torch.equal(whole.weight, parts.weight) and torch.equal(whole.scale, parts.scale)
        assert whole.weight.shape == parts.weight.shape and whole.scale.shape == parts.scale.shape
