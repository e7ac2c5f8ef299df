"""DoRA against its definition in float64, against peft's, and what it must not do: form the weight."""

from modules.module.AdapterSet import AdapterSet
from modules.module.dense_weight import dense_weight
from modules.module.DoRAModule import DoRAModule
from modules.module.LoRAModule import DOWN, UP, LoRAModule
from modules.module.magnitude import DORA_SCALE, PEFT_MAGNITUDE
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.module.layer_checks import forward_and_backward
from tests.module.memory_probe import MemoryProbe

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pytest

LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (3, 7, 12)),
    "linear large": (lambda: nn.Linear(64, 96), (2, 1100, 64)),
    "conv": (lambda: nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 8)),
    "conv grouped": (lambda: nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=3), (2, 6, 9, 8)),
    "conv large": (lambda: nn.Conv2d(32, 24, 3, padding=1, bias=False), (2, 32, 48, 48)),
}
both_axes = pytest.mark.parametrize("output_axis", [False, True])


def make(name: str, output_axis: bool, **options):
    """A layer, a hooked adapter that changes something, and an input."""
    torch.manual_seed(len(name))
    build, shape = LAYERS[name]
    layer = build()
    adapter = DoRAModule(layer, "unet", "some.layer", rank=4, alpha=2.0, output_axis=output_axis, **options)
    change(adapter)
    adapter.hook()
    return layer, adapter, torch.randn(shape)


@torch.no_grad()
def change(adapter: DoRAModule) -> None:
    adapter.up.normal_(std=0.3)
    adapter.magnitude.mul_(1 + 0.3 * torch.rand_like(adapter.magnitude))


def definition(weight: Tensor, down: Tensor, up: Tensor, scale: float, magnitude: Tensor, output_axis: bool) -> Tensor:
    """m·V/‖V‖ with V = W + s·BA, vector by vector, the norm a constant; in the dtype of the arguments."""
    v = weight + scale * torch.einsum("or,r...->o...", up.flatten(1), down)
    vectors = v if output_axis else v.transpose(0, 1)
    lengths = torch.stack([vector.norm() for vector in vectors]).detach()
    scaled = [m * vector / length for m, vector, length in zip(magnitude.flatten(), vectors, lengths, strict=True)]
    return torch.stack(scaled) if output_axis else torch.stack(scaled, 1)


@both_axes
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_the_definition(name, output_axis):
    layer, adapter, x = make(name, output_axis)
    y, grad = forward_and_backward(layer, x)
    own = (x, adapter.down, adapter.up, adapter.magnitude)
    wide = [tensor.detach().double().requires_grad_() for tensor in own]
    weight = definition(layer.weight.double(), wide[1], wide[2], adapter.scale, wide[3], output_axis)
    bias = None if layer.bias is None else layer.bias.double()
    linear = isinstance(layer, nn.Linear)
    expected = F.linear(wide[0], weight, bias) if linear else layer._conv_forward(wide[0], weight, bias)
    expected.backward(grad.double())
    # float32 against float64, relative to the largest entry: sums of up to 5,000 products
    assert (y.double() - expected).abs().max() < 3e-6 * expected.abs().max()
    for found, reference in zip(own, wide, strict=True):
        assert (found.grad.double() - reference.grad).abs().max() < 5e-6 * reference.grad.abs().max()
    merged = layer.weight.double() + adapter.merged_delta().double()
    assert (merged - weight).abs().max() < 1e-6 * weight.abs().max()


@pytest.mark.parametrize("name", ["linear", "linear large", "conv", "conv large"])
def test_agrees_with_peft(name):
    """Output axis, values and gradients, and peft's magnitude is read."""
    from peft import LoraConfig, inject_adapter_in_model

    layer, adapter, x = make(name, True, norm_epsilon=False)
    other = nn.Module()
    other.inner = LAYERS[name][0]()
    other.inner.load_state_dict(layer.state_dict())
    settings = LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=["inner"])
    inject_adapter_in_model(settings, other)
    theirs = [other.inner.lora_A["default"].weight, other.inner.lora_B["default"].weight]
    magnitude = other.inner.lora_magnitude_vector["default"].weight
    own = [adapter.down, adapter.up, adapter.magnitude]
    with torch.no_grad():
        assert torch.allclose(magnitude.flatten(), adapter._squares.sqrt(), rtol=1e-6)
        for target, source in zip([*theirs, magnitude], own, strict=True):
            target.copy_(source.reshape(target.shape))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    found, expected = layer(inputs[0]), other.inner(inputs[1])
    grad = torch.randn_like(found)
    found.backward(grad)
    expected.backward(grad)
    # float32 in another order, relative to the largest entry
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    for one, two in zip([inputs[0], *own], [inputs[1], *theirs, magnitude], strict=True):
        assert (one.grad - two.grad.view_as(one)).abs().max() < 1e-5 * two.grad.abs().max()
    before = adapter.magnitude.detach().clone()
    adapter.load_parts(
        {DOWN: theirs[0].detach(), UP: theirs[1].detach(), PEFT_MAGNITUDE: magnitude.detach(), "alpha": adapter.alpha}
    )
    assert torch.equal(adapter.magnitude, before)


@both_axes
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(160, 144), (32, 160)),
        (lambda: nn.Conv2d(24, 32, 3, padding=1), (1, 24, 7, 7)),
        (lambda: nn.Linear(512, 640), (300, 512)),  # large enough for the fused form, see LARGE_INPUT in low_rank.py
        (lambda: nn.Conv2d(128, 144, 3, padding=1), (1, 128, 32, 32)),
    ],
)
def test_nothing_as_large_as_the_weight_is_made(build, shape, output_axis):
    root = nn.Sequential(build())
    layer = root[0]
    adapters = AdapterSet(
        "unet", root, TrainConfig(lora_rank=4, lora_decompose=True, lora_decompose_output_axis=output_axis)
    )
    adapters.hook()
    adapter, x = adapters.adapters["0"], torch.randn(shape, requires_grad=True)
    change(adapter)
    limit = layer.weight.numel()
    assert x.numel() < limit
    with MemoryProbe([layer.weight]) as probe:
        root(x).sum().backward()
    assert adapter.magnitude.grad is not None and adapter.down.grad is not None
    # the backward pass was seen, too
    assert len([name for _, name in probe.sizes if "backward" in name or "mm" in name]) > 5
    assert probe.largest()[0] < limit, probe.largest()
    with MemoryProbe([layer.weight]) as naive:  # the probe would see it
        adapter.delta_weight()
    assert naive.largest()[0] >= limit


@both_axes
@pytest.mark.parametrize(
    ("build", "shape"),
    [(lambda: nn.Linear(240, 96), (1024, 240)), (lambda: nn.Conv2d(48, 32, 3, padding=1), (1, 48, 56, 56))],
)
def test_many_rows_do_not_make_the_weight_either(build, shape, output_axis):
    """Where LoRA forms W + ΔW for the gradient of its input, as that is faster; see `low_rank_linear`."""
    layer = build()
    adapter = DoRAModule(layer, "unet", "a", rank=4, alpha=1, output_axis=output_axis)
    change(adapter)
    adapter.hook()
    with MemoryProbe([layer.weight]) as probe:
        layer(torch.randn(shape, requires_grad=True)).sum().backward()
    forms = {layer.weight.shape, layer.weight.flatten(1).shape}
    assert not probe.shapes & (forms | {torch.Size(reversed(form)) for form in forms})
    adapter.unhook()
    lora = LoRAModule(layer, "unet", "a", rank=4, alpha=1)
    lora.hook()
    with MemoryProbe([layer.weight]) as probe:  # the probe would see it
        layer(torch.randn(shape, requires_grad=True)).sum().backward()
    assert probe.shapes & forms


@both_axes
def test_half_precision_weights_are_not_copied_whole(output_axis):
    layer = nn.Linear(1024, 700).bfloat16()
    with MemoryProbe([layer.weight]) as probe:
        adapter = DoRAModule(layer, "unet", "a", rank=4, alpha=1, output_axis=output_axis)
        adapter._norms()
    assert probe.largest()[0] < layer.weight.numel(), probe.largest()


@both_axes
@pytest.mark.parametrize("name", ["linear", "conv", "conv grouped"])
def test_norms_are_float32_whatever_the_base_and_autocast(name, output_axis):
    layer, adapter, x = make(name, output_axis)
    layer.bfloat16()
    fresh = DoRAModule(layer, "unet", "half", rank=4, alpha=2.0, output_axis=output_axis)
    with torch.no_grad():
        fresh.up.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        norms = fresh._norms()
    v = layer.weight.double() + fresh.scale * torch.einsum(
        "or,r...->o...", fresh.up.double().flatten(1), fresh.down.double()
    )
    expected = torch.stack([vector.norm() for vector in (v if output_axis else v.transpose(0, 1))])
    # float32 sums; bfloat16 anywhere would give 1e-3
    assert (norms / expected - 1).abs().max() < 2e-6


def test_norms_are_computed_once_per_forward(monkeypatch):
    """Also if checkpointing repeats the layers, and for no others than the adapted ones."""
    root = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    blocks = list(root)
    root.forward = lambda x: checkpoint(lambda x: blocks[1](blocks[0](x)), x, use_reentrant=False)
    adapters = AdapterSet("unet", root, TrainConfig(lora_rank=2, lora_decompose=True))
    adapters.hook()
    calls: list[str] = []
    original = DoRAModule.squared_norm_change
    monkeypatch.setattr(DoRAModule, "squared_norm_change", lambda self: calls.append(self.layer_name) or original(self))
    root(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert calls == ["0", "1"]
    with torch.no_grad():
        adapters.adapters["1"].up.add_(1)
    root(torch.randn(3, 6))
    assert calls == ["0", "1"] * 2
    with torch.no_grad():
        adapters.adapters["1"].up.add_(1)
    blocks[1](torch.randn(3, 6))  # by itself, after a change: its own
    blocks[0](torch.randn(3, 6))  # unchanged: what it has
    assert calls == ["0", "1", "0", "1", "1"]


@both_axes
def test_dropout_is_on_the_low_rank_term_only(output_axis):
    layer, adapter, x = make("linear", output_axis, dropout=0.9)
    with torch.no_grad():
        adapter.up.zero_()
    assert torch.equal(layer(x), layer(x))  # lengths and weight see all of the input
    change(adapter)
    assert not torch.equal(layer(x), layer(x))


@both_axes
@pytest.mark.parametrize("epsilon", [False, True])
def test_weight_vectors_of_length_zero_do_no_harm(output_axis, epsilon):
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight[3], layer.weight[:, 2] = 0, 0
    x = torch.randn(5, 6)
    plain = layer(x)
    adapter = DoRAModule(layer, "unet", "a", rank=2, alpha=1, output_axis=output_axis, norm_epsilon=epsilon)
    adapter.hook()
    y = layer(x)
    assert torch.equal(y, plain)
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())


def test_epsilon_is_added():
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight.mul_(1e-7)
    norms = [DoRAModule(layer, "unet", "a", rank=2, alpha=1, norm_epsilon=on)._norms() for on in (False, True)]
    assert torch.allclose(norms[1] - norms[0], torch.full((6,), 2.0**-23), rtol=1e-5)


@both_axes
@pytest.mark.parametrize("name", ["linear", "conv grouped"])
def test_lengths_of_a_file(name, output_axis):
    layer, adapter, _ = make(name, output_axis)
    out, inner = layer.weight.shape[:2]
    expected = [out, 1] if output_axis else [1, inner]
    assert list(adapter.parts()[DORA_SCALE].shape) == expected + [1, 1] * (layer.weight.dim() == 4)
    options = DoRAModule.options_of(adapter.parts(), layer)
    assert options["lora_decompose"] and options["lora_decompose_output_axis"] == output_axis
    info = get_parameter_info(adapter.magnitude)
    assert (info.role, info.pair, info.name) == (ParameterRole.DORA_SCALE, None, "unet.some.layer.dora_scale")
    # flat, as some programs write them
    start = adapter.magnitude.detach().clone()
    adapter.load_parts({**adapter.parts(), DORA_SCALE: start.flatten()})
    assert torch.equal(adapter.magnitude, start)


def test_the_axis_of_a_square_layer_is_told_by_the_shape():
    layer = nn.Linear(6, 6)
    parts = DoRAModule(layer, "unet", "a", rank=2, alpha=1).parts()
    assert not DoRAModule.options_of(parts, layer)["lora_decompose_output_axis"]
    assert DoRAModule.options_of({**parts, DORA_SCALE: torch.ones(6, 1)}, layer)["lora_decompose_output_axis"]


def test_wrong_lengths_are_named():
    layer, adapter, _ = make("linear", False)
    parts = adapter.parts()
    with pytest.raises(UserError, match=r"some\.layer.*per output\. Set lora_decompose_output_axis to true"):
        adapter.load_parts({**parts, DORA_SCALE: torch.ones(20, 1)})
    with pytest.raises(UserError, match=r"some\.layer.*dora_scale has the shape \[1, 13\], expected \[1, 12\]"):
        adapter.load_parts({**parts, DORA_SCALE: torch.ones(1, 13)})
    with pytest.raises(UserError, match="dora_scale is missing"):
        adapter.load_parts({part: tensor for part, tensor in parts.items() if part != DORA_SCALE})
    assert DoRAModule.recognizes(parts) and not DoRAModule.recognizes(parts.keys() - {DORA_SCALE})


def test_lengths_stay_float32():
    root = nn.Sequential(nn.Linear(33, 20))
    x = torch.randn(4, 33)
    plain = root(x)
    config = TrainConfig(lora_decompose=True, lora_weight_dtype=DataType.BFLOAT_16)
    adapters = AdapterSet("unet", root, config)
    adapters.hook()
    adapter = adapters.adapters["0"]
    assert (adapter.down.dtype, adapter.magnitude.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(root(x), plain)


class Packed(torch.Tensor):
    """A weight in 8 bits, as quantization libraries have it: numbers of another dtype that can be unpacked."""

    @staticmethod
    def pack(weight: Tensor) -> "Packed":
        step = weight.abs().max() / 127
        packed = torch.Tensor._make_subclass(Packed, (weight / step).round().to(torch.int8))
        packed.step = step
        return packed

    def dequantize(self) -> Tensor:
        return self.as_subclass(torch.Tensor).float() * self.step


class PackedLinear(nn.Linear):
    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features)
        self.load_state_dict(source.state_dict())
        packed = Packed.pack(self.weight.detach())
        del self.weight
        self.weight = packed

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.dequantize(), self.bias)


def quantized(kind: str) -> nn.Module:
    torch.manual_seed(0)
    source = nn.Linear(128, 192)
    if kind == "packed":
        return PackedLinear(source)
    import bitsandbytes

    if kind == "8 bit":
        layer = bitsandbytes.nn.Linear8bitLt(128, 192, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(128, 192, quant_type="nf4")
    layer.load_state_dict(source.state_dict())
    return layer.to("cpu")  # this quantizes


KINDS = [
    {"peft_type": PeftType.LORA},
    {"peft_type": PeftType.LORA, "lora_decompose": True},
    {"peft_type": PeftType.LORA, "lora_decompose": True, "lora_decompose_output_axis": True},
    {"peft_type": PeftType.LOHA},
    {"peft_type": PeftType.LOKR, "lokr_weight_decompose": True},
    {"peft_type": PeftType.LOKR, "lokr_weight_decompose": True, "lokr_dora_on_output": False},
]


@pytest.mark.parametrize("bits", ["8 bit", "4 bit", "packed"])
@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(map(str, options.values())))
def test_quantized_layers(bits, options):
    layer = quantized(bits)
    x = torch.randn(9, 128)
    plain = layer(x)  # 8-bit layers move their scales in the first forward
    root = nn.Sequential(layer)
    adapters = AdapterSet("unet", root, TrainConfig(lora_rank=4, lokr_dim=2, **options))
    adapters.hook()
    assert torch.equal(root(x), plain)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weight = dense_weight(layer)
    assert weight.shape == (192, 128) and (weight - dense_weight(quantized(bits))).abs().max() == 0
    found = root(x)
    expected = F.linear(x, weight + adapters.adapters["0"].merged_delta(), layer.bias)
    # bitsandbytes rounds the input to 8 bits, too: 1/127 of the largest entry of a row
    limit = 0.02 if bits == "8 bit" else 1e-5
    assert (found - expected).abs().max() < limit * expected.abs().max()
    found.square().sum().backward()
    assert all(parameter.grad.any() for parameter in adapters.parameters())
    adapters.unhook()
    with pytest.raises(UserError, match=r"unet\.0 is quantized; nothing can be merged"):
        adapters.merge()
    assert torch.equal(root(x), plain)


@pytest.mark.parametrize("bits", ["8 bit", "4 bit", "packed"])
def test_dense_weight_is_near_the_weight_before(bits):
    torch.manual_seed(0)
    source = nn.Linear(128, 192)
    error = (dense_weight(quantized(bits)) - source.weight).norm() / source.weight.norm()
    # uniform weights in ±a: 8 bits have steps of a/127, 16 levels of a normal distribution a tenth of the spread
    assert 1e-4 < error < (0.15 if bits == "4 bit" else 0.01)
