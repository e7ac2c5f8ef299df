"""DoRA-OFT: a magnitude on the axis that the rotation leaves alone."""

from modules.module.AdapterSet import AdapterSet
from modules.module.DoRAOFTModule import DoRAOFTModule
from modules.module.kinds import adapter_class_of, class_of_layers
from modules.module.magnitude import DORA_SCALE
from modules.module.OFTModule import INPUT, OUTPUT, OFTModule
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OFTSide import OFTSide
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.module.layer_checks import forward_and_backward

import torch
from torch import nn
from torch.nn import functional as F

import pytest

CASES = {
    "linear": (lambda: nn.Linear(12, 20), (3, 5, 12)),
    "linear, no bias": (lambda: nn.Linear(12, 20, bias=False), (4, 30, 12)),
    "conv": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 8)),
    "conv circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular", stride=2), (2, 8, 6, 8)),
    "conv grouped": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=2, bias=False), (2, 8, 5, 6)),
}
EVERY = pytest.mark.parametrize("name", CASES)
BOTH = pytest.mark.parametrize("side", list(OFTSide))


def make(name: str, side: OFTSide, trained: bool = True, **options):
    torch.manual_seed(len(name))
    build, shape = CASES[name]
    layer = build()
    adapter = DoRAOFTModule(layer, "unet", "a", block_size=4, side=side, **options)
    if trained:
        with torch.no_grad():
            adapter.weight.normal_(std=0.1)
            adapter.magnitude.mul_(1 + 0.2 * torch.randn_like(adapter.magnitude))
    adapter.hook()
    return layer, adapter, torch.randn(shape)


@EVERY
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm_epsilon", [False, True])
def test_fresh_adapter_changes_nothing(name, side, dtype, norm_epsilon):
    layer, adapter, x = make(name, side, trained=False, dtype=dtype, norm_epsilon=norm_epsilon)
    found = layer(x)
    adapter.unhook()
    assert torch.equal(found, layer(x)) and not adapter.merged_delta().any()
    assert adapter.weight.dtype == dtype and adapter.magnitude.dtype == torch.float32


@EVERY
@BOTH
def test_value_and_gradients_equal_float64_reference(name, side):
    """W' = m·R(W)/‖R(W)‖ with the norm of the rotated weight itself, to show that it is the base's."""
    layer, adapter, x = make(name, side)
    y, grad = forward_and_backward(layer, x)

    # the rotation alone is what tests/module/test_oft_module.py checks
    plain = OFTModule(layer, "unet", "b", block_size=4, side=side).double()
    plain.load_state({"weight": adapter.weight})
    wide, numbers = x.detach().double().requires_grad_(), plain.weight
    lengths = adapter.magnitude.detach().double().requires_grad_()
    rotated = layer.weight.double() + plain.delta_weight().double()
    axis = 1 if side == OFTSide.OUTPUT else 0
    others = [other for other in range(rotated.dim()) if other != axis]
    norm = torch.linalg.vector_norm(rotated, dim=others, keepdim=True)
    weight = lengths.view(norm.shape) * rotated / norm.detach()
    bias = None if layer.bias is None else layer.bias.double()
    reference = (
        F.linear(wide, weight, bias) if isinstance(layer, nn.Linear) else layer._conv_forward(wide, weight, bias)
    )
    reference.backward(grad.double())
    pairs = ((y, reference), (x.grad, wide.grad), (adapter.weight.grad, numbers.grad))
    for found, expected in (*pairs, (adapter.magnitude.grad, lengths.grad)):
        # relative to the largest entry, as sums of float32 products carry an error of that size
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    merged = layer.weight + adapter.merged_delta()
    assert (merged - weight).abs().max() < 1e-5


@EVERY
@BOTH
def test_layers_that_are_not_plain_are_called(name, side):
    layer, adapter, x = make(name, side)
    expected = layer(x)
    adapter.unhook()
    layer.forward = lambda x: type(layer).forward(layer, x)
    adapter.hook()
    assert torch.allclose(layer(x), expected, atol=1e-5)  # float32, another order
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    # bfloat16 holds 8 bits
    assert half.dtype == torch.bfloat16 and (half - expected).abs().max() < 0.03 * expected.abs().max()


@EVERY
@BOTH
def test_parts_shapes_and_restoring(name, side):
    layer, source, x = make(name, side)
    parts = source.parts()
    shape = layer.weight.shape
    own = [shape[0], 1] if side == OFTSide.INPUT else [1, shape[1]]
    assert list(parts[DORA_SCALE].shape) == own + [1] * (len(shape) - 2)
    assert parts.keys() == {INPUT if side == OFTSide.INPUT else OUTPUT, DORA_SCALE}
    assert class_of_layers({"a": parts}) is DoRAOFTModule
    options = DoRAOFTModule.options_of(parts, layer)
    config = TrainConfig(**options)
    assert adapter_class_of(config) is DoRAOFTModule
    for scale in (parts[DORA_SCALE], parts[DORA_SCALE].view(own), parts[DORA_SCALE].flatten()):
        target = DoRAOFTModule.create(layer, "unet", "b", config, 0)
        target.load_parts(parts | {DORA_SCALE: scale})
        assert torch.equal(target.magnitude, source.magnitude)
        assert torch.allclose(target.weight, source.weight, rtol=1e-6)  # the scale is multiplied in and divided out
    again = DoRAOFTModule.create(layer, "unet", "c", config, 0)
    again.load_state(source.state())
    assert torch.equal(again.weight, source.weight) and torch.equal(again.magnitude, source.magnitude)


def test_a_set_from_the_config_with_roles():
    config = TrainConfig(peft_type=PeftType.OFT_2, lora_decompose=True, oft_block_size=4, dropout_probability=0.3)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
    adapters = AdapterSet("unet", model, config)
    roles = [get_parameter_info(parameter).role for parameter in adapters.parameters()]
    assert roles == [ParameterRole.OFT, ParameterRole.DORA_SCALE] * 2
    names = {get_parameter_info(parameter).name for parameter in adapters.parameters()}
    assert names == adapters.state_dict().keys() and "unet.0.dora_scale" in names


@BOTH
def test_zero_rows_do_no_harm(side):
    for norm_epsilon in (False, True):
        layer = nn.Linear(8, 8)
        nn.init.zeros_(layer.weight)
        adapter = DoRAOFTModule(layer, "unet", "a", block_size=4, side=side, norm_epsilon=norm_epsilon)
        adapter.hook()
        x = torch.randn(3, 8, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert torch.equal(y, layer.bias.expand(3, -1))
        assert not torch.cat([p.grad.flatten() for p in (*adapter.parameters(), x)]).any()


def test_lengths_of_the_other_axis_are_refused():
    layer, adapter, _ = make("linear", OFTSide.INPUT)
    wrong = {INPUT: torch.zeros(3, 6), DORA_SCALE: torch.ones(1, 12)}
    with pytest.raises(UserError, match=r"unet.a: dora_scale has the shape \[1, 12\], expected \[20, 1\]"):
        adapter.load_parts(wrong)
    with pytest.raises(UserError, match="dora_scale is missing"):
        adapter.load_parts({INPUT: torch.zeros(3, 6)})
