"""Layers with a weight in 8 or 4 bits: what they compute, keep, and let adapters do."""

import copy

from modules.model.LayerOffload import module_bytes
from modules.model.QuantizedLinear import NF4_LEVELS, WEIGHT_CODECS, QuantizedLinear
from modules.module.AdapterSet import AdapterSet
from modules.module.dense_weight import dense_weight, is_quantized
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.PeftType import PeftType
from modules.util.UserError import UserError
from tests.foreign_device import ForeignDevice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pytest

FORMATS = list(WEIGHT_CODECS)
every_format = pytest.mark.parametrize("data_type", FORMATS)
KINDS = [
    {"peft_type": PeftType.LORA},
    {"peft_type": PeftType.LORA, "lora_decompose": True},
    {"peft_type": PeftType.LORA, "lora_decompose": True, "lora_decompose_output_axis": True},
    {"peft_type": PeftType.OFT_2},
    {"peft_type": PeftType.OFT_2, "lora_decompose": True},
    {"peft_type": PeftType.LOHA},
    {"peft_type": PeftType.LOKR, "lokr_weight_decompose": True},
]


def source(out: int = 192, inner: int = 128, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inner, out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(std=0.02)
        layer.weight[3] = 0  # a row without any number to scale by
        layer.weight[5] *= 50
    return layer.requires_grad_(False)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@every_format
def test_weight_is_near_and_zeros_stay(data_type):
    layer = source()
    dense = QuantizedLinear(layer, data_type).dense()
    assert dense.dtype == torch.float32 and not dense[3].any() and dense.isfinite().all()
    # relative to the row's largest number (INT_8: steps of 1/127; e4m3: 3 bits of mantissa; NF4: 16 levels of a block)
    limits = {DataType.INT_8: 0.02, DataType.FLOAT_8: 0.04, DataType.NFLOAT_4: 0.12}
    assert 1e-3 < error(dense, layer.weight) < limits[data_type]


def test_formats_differ_and_more_bits_are_nearer():
    errors = [error(QuantizedLinear(source(), kind).dense(), source().weight) for kind in FORMATS]
    assert errors[2] > 2 * max(errors[:2]) and errors[0] != errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_format
def test_products_and_gradients_are_those_of_the_dense_weight(data_type, dtype):
    layer = QuantizedLinear(source(), data_type).to(dtype)
    plain = nn.Linear(128, 192)
    plain.weight, plain.bias = nn.Parameter(layer.dense(dtype)), nn.Parameter(layer.bias.clone())
    x = torch.randn(3, 5, 128, dtype=dtype)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(first), plain(second)
    assert y.dtype == dtype and torch.equal(y, expected)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    # the same products; a kernel may add them up in another order for another layout
    limit = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    assert error(first.grad.float(), second.grad.float()) < limit
    assert layer.weight.grad is None


@every_format
def test_every_arithmetic_unpacks_the_same_weight(data_type):
    layer = QuantizedLinear(source(), data_type)
    exact = layer.dense()
    for dtype, limit in ((torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-9)):
        # the roundings of a level or number and of its product; small numbers of float16 are subnormal
        assert ((layer.dense(dtype).float() - exact).abs() <= limit * exact.abs() + 2.0**-24).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_format
def test_a_device_unpacks_the_same_numbers(data_type, dtype):
    layer, device = QuantizedLinear(source(), data_type), ForeignDevice()
    with device:
        found = WEIGHT_CODECS[data_type].unpack(device.put(layer.weight), device.put(layer.scale), dtype)
    assert found.device == device.device and torch.equal(device.taken(found), layer.dense(dtype))


def test_float8_is_torchs():
    """The shifts that unpack on a CPU, on every code there is, against torch's own conversion."""
    codec = WEIGHT_CODECS[DataType.FLOAT_8]
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8).view(2, 128)
    found = codec.unpack(codes, torch.ones(2, 1, dtype=torch.bfloat16), torch.float32)
    expected = codes.view(torch.float8_e4m3fn).float()
    number = expected.isfinite()
    assert number.sum() == 254 and torch.equal(found[number], expected[number])


def test_nf4_is_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = source().weight.detach()
    codes, scale = WEIGHT_CODECS[DataType.NFLOAT_4].pack(weight)
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    assert torch.equal(state.code, torch.tensor(NF4_LEVELS))
    # their scale is float32 and ours bfloat16, so a number between two levels may go to the other one
    low, high = (codes.view(torch.uint8).flatten() & 15, codes.view(torch.uint8).flatten() >> 4)
    differing = ((theirs.flatten() & 15) != low).sum() + ((theirs.flatten() >> 4) != high).sum()
    assert differing < 0.02 * weight.numel()
    state.absmax = scale.float().flatten()
    ours = functional.dequantize_4bit(codes.view(torch.uint8).view(-1, 1), state)
    assert torch.equal(ours, WEIGHT_CODECS[DataType.NFLOAT_4].unpack(codes, scale, torch.float32))


@every_format
def test_bytes_of_a_layer(data_type):
    layer = QuantizedLinear(source(1024, 1024, bias=False), data_type)
    # codes, and two bytes for each scale
    expected = {8: 2**20 + 2 * 2**10, 4: 2**19 + 2 * 2**14}[4 if data_type == DataType.NFLOAT_4 else 8]
    assert module_bytes(layer) == expected


@every_format
def test_autocast_decides_as_for_any_layer(data_type):
    layer = QuantizedLinear(source(), data_type)
    x = torch.randn(4, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.any()


@every_format
def test_nothing_dense_is_kept_for_the_backward(data_type):
    layer = QuantizedLinear(source(), data_type)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 128, requires_grad=True))
    assert {tensor.dtype for tensor in kept} == {torch.int8, torch.bfloat16}
    assert sum(tensor.nbytes for tensor in kept) <= 192 * 128 + 192 * 4


@every_format
def test_moves_copies_and_state_keep_the_numbers(data_type):
    layer = QuantizedLinear(source(), data_type)
    exact = layer.dense()
    assert torch.equal(copy.deepcopy(layer).to(torch.float16).dense(), exact)
    other = QuantizedLinear(nn.Linear(128, 192), data_type)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dense(), exact)
    assert layer.to("meta").weight.is_meta and layer.scale.is_meta


@every_format
@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(map(str, options.values())))
def test_adapters(data_type, options):
    torch.manual_seed(0)
    layer = QuantizedLinear(nn.Linear(128, 192), data_type)
    assert is_quantized(layer) and torch.equal(dense_weight(layer), layer.dense())
    x = torch.randn(9, 128)
    plain = layer(x)
    root = nn.Sequential(layer)
    config = TrainConfig(lora_rank=4, lokr_dim=2, oft_block_size=16, **options)
    adapters = AdapterSet("unet", root, config)
    adapters.hook()
    assert torch.equal(root(x), plain)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = root(x)
    expected = F.linear(x, layer.dense() + adapters.adapters["0"].merged_delta(), layer.bias)
    # float32, sums of 128 numbers and for rotations a solve
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    found.square().sum().backward()
    grads = [parameter.grad.clone() for parameter in adapters.parameters()]
    assert all(grad.any() for grad in grads)
    for parameter in adapters.parameters():
        parameter.grad = None
    checkpoint(root, x.clone().requires_grad_(), use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(adapters.parameters(), grads, strict=True))
    adapters.unhook()
    with pytest.raises(UserError, match=r"unet\.0 is quantized; nothing can be merged"):
        adapters.merge()
    assert torch.equal(root(x), plain)
