"""The adapter contract for OFT on single layers, on both sides, against dense matrices written out by loops."""

from modules.module.AdapterSet import AdapterSet
from modules.module.block_rotation import rotate
from modules.module.kinds import adapter_class_of, class_of_layers
from modules.module.oft_math import rotations, triangle_size
from modules.module.OFTModule import INPUT, MARKER, OUTPUT, OFTModule
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.OFTSide import OFTSide
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.module.layer_checks import check_half_precision, forward_and_backward, hooked_oft

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pytest

# name -> (layer, input shape, block size); where the weight is smaller than the input it is rotated, see block_rotation
CASES = {
    "linear": (lambda: nn.Linear(12, 20), (3, 5, 12), 4),
    "linear, many rows": (lambda: nn.Linear(12, 20), (4, 30, 12), 4),
    "linear, wide blocks": (lambda: nn.Linear(40, 20, bias=False), (6, 40), 20),
    "linear, one block": (lambda: nn.Linear(10, 10), (6, 10), 10),
    "linear, many small blocks": (lambda: nn.Linear(64, 32), (70, 64), 2),
    "conv 3x3": (lambda: nn.Conv2d(8, 12, 3, padding=1), (1, 8, 5, 6), 4),
    "conv 3x3, many pixels": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 19, 18), 4),
    "conv stride 2": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), (2, 8, 9, 8), 2),
    "conv 1x1": (lambda: nn.Conv2d(8, 12, 1), (2, 8, 9, 8), 4),
    "conv grouped": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (1, 8, 5, 6), 2),
    "conv grouped, many pixels": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 19, 18), 2),
    "conv circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), (2, 8, 6, 5), 4),
    "conv same": (lambda: nn.Conv2d(8, 12, (3, 5), padding="same"), (2, 8, 6, 5), 4),
}
SIDES = list(OFTSide)
BOTH = pytest.mark.parametrize("side", SIDES)
EVERY = pytest.mark.parametrize("name", CASES)
FEW = pytest.mark.parametrize("name", ["linear", "linear, many rows", "conv 3x3", "conv 3x3, many pixels"])


def make(name: str, side: OFTSide = OFTSide.INPUT, kind: type[OFTModule] = OFTModule, **options):
    """A layer, a hooked adapter that is not the identity any more, and an input."""
    torch.manual_seed(len(name))
    build, shape, size = CASES[name]
    return hooked_oft(build(), shape, kind, **({"block_size": size, "side": side} | options))


def dense_rotation(adapter: OFTModule, numbers: Tensor | None = None) -> Tensor:
    """blockdiag(R) in float64 from the (effective) numbers, by loops; differentiable."""
    numbers = adapter.weight.detach().double() * adapter.forward_scale if numbers is None else numbers
    size, blocks = adapter.block_size, []
    for block in range(adapter.blocks):
        own = iter(numbers[block if len(numbers) > 1 else 0])
        rows = [[torch.zeros((), dtype=torch.float64)] * size for _ in range(size)]
        for row in range(size):
            for column in range(row + 1, size):
                value = next(own)
                rows[row][column], rows[column][row] = value, -value
        q, identity = torch.stack([torch.stack(row) for row in rows]), torch.eye(size, dtype=torch.float64)
        if adapter.neumann:
            blocks.append(identity + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
        else:
            blocks.append((identity + q) @ torch.linalg.inv(identity - q))
    return torch.block_diag(*blocks)


def expected_weight(layer: nn.Module, rotation: Tensor, side: OFTSide) -> Tensor:
    """The rotated weight as FORMATS.md has it, group by group of a convolution, in float64."""
    weight, linear = layer.weight.double(), isinstance(layer, nn.Linear)
    groups = 1 if linear else layer.groups
    if side == OFTSide.OUTPUT:
        return torch.einsum("po,p...->o...", rotation, weight)  # Rᵀ·W
    pieces, inner = [], weight.shape[1]
    for group, own in enumerate(weight.chunk(groups)):
        block = rotation[group * inner : (group + 1) * inner, group * inner : (group + 1) * inner]
        pieces.append(torch.einsum("oi,ci->oc", own, block) if linear else torch.einsum("oi...,ic->oc...", own, block))
    return torch.cat(pieces)


def layer_output(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(weight.dtype)
    return F.linear(x, weight, bias) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, bias)


@EVERY
@BOTH
def test_fresh_adapter_changes_nothing(name, side):
    layer, adapter, x = make(name, side)
    adapter.unhook()
    expected = layer(x)
    nn.init.zeros_(adapter.weight)
    adapter.hook()
    assert torch.equal(layer(x), expected) and not adapter.merged_delta().any()


@EVERY
@BOTH
@pytest.mark.parametrize("options", [{}, {"share": True}, {"neumann": True}, {"scaled": OFTScaleMode.ELEMENTS}])
@pytest.mark.parametrize("channels_last", [False, True])
def test_value_and_gradients_equal_float64_reference(name, side, options, channels_last):
    layer, adapter, x = make(name, side, **options)
    if channels_last:
        if x.dim() != 4:
            layer, adapter, x = make(name, side, **options)
            x = x.transpose(0, -2).contiguous().transpose(0, -2)  # rows that do not follow each other in memory
        else:
            x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    y, grad = forward_and_backward(layer, x)

    wide, numbers = x.detach().double().requires_grad_(), adapter.weight.detach().double().requires_grad_()
    rotation = dense_rotation(adapter, numbers * adapter.forward_scale)
    reference = layer_output(layer, wide, expected_weight(layer, rotation, side))
    reference.backward(grad.double())
    for found, expected in ((y, reference), (x.grad, wide.grad), (adapter.weight.grad, numbers.grad)):
        # relative to the largest entry, as sums of float32 products carry an error of that size; the only entry of a
        # shared block of 2 is a sum of hundreds of terms of about 1 that may cancel
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1)


@BOTH
@pytest.mark.parametrize("name", ["linear, one block", "conv 1x1"])
def test_the_opposite_direction_is_told_apart(name, side):
    """The same check as above must fail for the inverse rotation, on a layer where shapes would allow it."""
    layer, adapter, x = make(name, side)
    rotation = dense_rotation(adapter)
    right = layer_output(layer, x.double(), expected_weight(layer, rotation, side))
    wrong = layer_output(layer, x.double(), expected_weight(layer, rotation.t(), side))
    assert (layer(x) - right).abs().max() < 1e-5 < 1e-2 < (layer(x) - wrong).abs().max()


@EVERY
@BOTH
def test_hooked_equals_merged(name, side):
    layer, adapter, x = make(name, side)
    base, hooked = layer.weight.clone(), layer(x)
    adapter.unhook()
    plain = layer(x)
    adapter.merge()
    # float32 sums over at most 72 terms in another order
    assert torch.allclose(hooked, layer(x), atol=1e-5)
    assert not torch.allclose(hooked, plain, atol=1e-3)
    adapter.unmerge()
    assert torch.equal(layer.weight, base)


@FEW
@BOTH
def test_gradient_only_where_needed(name, side):
    layer, adapter, x = make(name, side)
    layer(x).sum().backward()  # x needs none
    expected = adapter.weight.grad.clone()
    x.requires_grad_()
    adapter.weight.grad = None
    layer(x).sum().backward()
    assert torch.allclose(adapter.weight.grad, expected, atol=1e-4)  # another order of sums of about 100
    adapter.requires_grad_(False)
    adapter.weight.grad = x.grad = None
    layer(x).sum().backward()
    assert x.grad is not None and adapter.weight.grad is None


@FEW
@BOTH
def test_the_result_may_be_changed_in_place(name, side):
    layer, _, x = make(name, side)
    x.requires_grad_()
    expected = torch.relu(layer(x))
    assert torch.equal(layer(x).relu_(), expected)
    torch.relu_(layer(x)).sum().backward()


@FEW
@BOTH
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients(name, side, reentrant, dropout):
    layer, adapter, x = make(name, side, dropout=dropout)
    x.requires_grad_()
    torch.manual_seed(5)
    adapter.prepare([adapter])
    layer(x).square().sum().backward()
    expected = adapter.weight.grad.clone()
    adapter.zero_grad()
    torch.manual_seed(5)
    adapter.prepare([adapter])
    prepared = adapter.rotation()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(adapter.weight.grad, expected) and adapter.rotation() is prepared


@FEW
@BOTH
def test_autocast_and_half_base_keep_float32_parameters(name, side):
    layer, adapter, x = make(name, side)
    check_half_precision(layer, adapter.weight, x)


def test_half_precision_only_rounds_the_result():
    """R itself in bfloat16 would lose what its diagonal, 1 minus a little, says."""
    torch.manual_seed(0)
    numbers = torch.full((1, triangle_size(8)), 0.0117)
    matrix, x = rotations([numbers], [1.0], 8)[0], torch.randn(4000, 8).bfloat16()
    exact = x.double() @ matrix[0].double()

    def error(found: Tensor) -> float:
        return (found.double() - exact).square().mean().sqrt().item()

    least = error(exact.bfloat16())
    # the matrix less the identity has bfloat16's relative error, too, but is small
    assert error(rotate(x, matrix, -1)) < 1.05 * least < 1.2 * least < error(x @ matrix[0].bfloat16())


@BOTH
@FEW
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}])
def test_layers_that_are_not_plain_are_called(name, side, options):
    """As quantized ones are: the layer's own forward, whatever it is, with its bias in the result."""
    layer, adapter, x = make(name, side, **options)
    adapter.eval()
    expected = layer(x)
    adapter.unhook()
    layer.forward = lambda x: type(layer).forward(layer, x)
    adapter.hook()
    assert torch.allclose(layer(x), expected, atol=1e-5)  # float32, another order
    nn.init.zeros_(adapter.weight)
    assert torch.equal(layer(x), layer_output(layer, x, layer.weight))


def root_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(36, 24))


@BOTH
def test_a_set_makes_rotations_once_per_forward(side, monkeypatch):
    model, x = root_model(), torch.randn(2, 4, 6, 6)
    adapters = AdapterSet("unet", model, TrainConfig(peft_type=PeftType.OFT_2, oft_block_size=4, oft_side=side))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1)
    adapters.hook()
    calls = []
    from modules.module import OFTModule as file

    original = file.rotations
    monkeypatch.setattr(file, "rotations", lambda *a: calls.append(len(a[0])) or original(*a))
    model(x).square().sum().backward()
    assert calls == [3]
    found = [parameter.grad.clone() for parameter in adapters.parameters()]
    for parameter in adapters.parameters():
        parameter.grad = None
    for adapter in adapters.adapters.values():
        adapter._stored = None
    adapters._prepared.remove()
    model(x).square().sum().backward()
    assert calls == [3, 1, 1, 1]
    for parameter, expected in zip(adapters.parameters(), found, strict=True):
        # one call or three: the same arithmetic up to the rounding of the inverse
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_stale_rotations_are_not_used():
    layer, adapter, x = make("linear")
    with torch.no_grad():
        adapter.prepare([adapter])
        prepared = adapter.rotation()
        assert adapter.rotation() is prepared
    assert adapter.rotation() is not prepared and adapter.rotation().requires_grad  # made without a graph
    adapter.prepare([adapter])
    prepared = adapter.rotation()
    assert adapter.rotation() is prepared
    with torch.no_grad():
        adapter.weight.mul_(2)
    assert not torch.equal(adapter.rotation(), prepared)
    adapter.prepare([adapter])
    adapter.to(torch.float64)
    assert adapter.rotation().dtype == torch.float64
    adapter.prepare([adapter])
    adapter.unhook()
    assert adapter._stored is None


@BOTH
@pytest.mark.parametrize("share", [False, True])
def test_dropout_only_while_training(side, share):
    layer, adapter, x = make("linear, many small blocks", side, dropout=0.5, share=share)
    layer.eval()  # the base model's mode does not matter
    torch.manual_seed(0)
    adapter.prepare([adapter])
    kept = (adapter.rotation() != torch.eye(2)).flatten(1).any(1)
    assert 0 < kept.sum() < len(kept) == adapter.blocks  # shared blocks are dropped place by place, too
    assert torch.equal(layer(x), layer(x))  # one draw per step
    trained = layer(x)
    adapter.eval()
    assert not torch.equal(layer(x), trained) and torch.equal(layer(x), layer(x))
    without, _, _ = make("linear, many small blocks", side, share=share)
    assert torch.equal(layer(x), without(x))
    adapter.train()
    layer(x).square().sum().backward()
    assert adapter.weight.grad.any()


def test_block_size_is_adjusted_and_noted():
    adapter = OFTModule(nn.Linear(200, 320), "unet", "a", block_size=32)
    assert adapter.block_size == 25 and adapter.weight.shape == (8, triangle_size(25))
    assert list(adapter.notes.values()) == ["unet.a: block size 32 → 25, the nearest divisor of its 200 inputs"]
    output = OFTModule(nn.Linear(200, 320), "unet", "a", block_size=32, side=OFTSide.OUTPUT)
    assert output.block_size == 32 and not output.notes
    assert OFTModule(nn.Linear(37, 4), "unet", "a", block_size=4).block_size == 37  # never 1
    grouped = OFTModule(nn.Conv2d(32, 32, 3, groups=4), "unet", "a", block_size=16)
    assert (grouped.block_size, grouped.blocks) == (8, 4)
    with pytest.raises(UserError, match="unet.a has one of inputs per group, which can't be rotated"):
        OFTModule(nn.Conv2d(32, 32, 3, groups=32), "unet", "a", block_size=16)
    assert not OFTModule(nn.Linear(8, 8), "unet", "a", block_size=8, share=True).share


@pytest.mark.parametrize(
    ("scaled", "scale"), [(None, 1), (OFTScaleMode.ELEMENTS, 6**-0.5), (OFTScaleMode.ROW, 0.5 / 3**0.5)]
)
@pytest.mark.parametrize("dtype", [DataType.FLOAT_32, DataType.BFLOAT_16])
def test_created_from_a_config_with_role_scale_and_dtype(scaled, scale, dtype):
    config = TrainConfig(
        peft_type=PeftType.OFT_2,
        oft_block_size=4,
        oft_scaled=scaled is not None,
        oft_scale_mode=scaled or OFTScaleMode.ROW,
        lora_weight_dtype=dtype,
    )
    assert adapter_class_of(config) is OFTModule
    adapter = OFTModule.create(nn.Linear(12, 20), "unet", "some.layer", config, 0)
    info = get_parameter_info(adapter.weight)
    assert (info.role, info.pair, info.component, info.layer) == (ParameterRole.OFT, None, "unet", "some.layer")
    assert info.name == "unet.some.layer.weight" and abs(info.forward_scale - scale) < 1e-12
    assert adapter.weight.shape == (3, 6) and not adapter.weight.any()
    assert adapter.weight.dtype == (torch.float32 if dtype == DataType.FLOAT_32 else torch.bfloat16)


@EVERY
@BOTH
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("scaled", [None, OFTScaleMode.ELEMENTS])
def test_files_hold_effective_weights_and_restore_everything(name, side, share, scaled):
    layer, source, x = make(name, side, share=share, scaled=scaled)
    parts = source.parts()
    assert parts.keys() == {OUTPUT if side == OFTSide.OUTPUT else INPUT}
    assert class_of_layers({"a": parts}) is OFTModule
    options = OFTModule.options_of(parts, layer)
    assert options["oft_block_share"] == source.share and options["oft_side"] == side
    target = OFTModule.create(layer, "unet", "b", TrainConfig(**options), 0)
    target.load_parts(parts)
    # the scale is multiplied in and divided out
    assert torch.allclose(target.weight, source.weight * source.forward_scale, rtol=1e-6)
    assert torch.allclose(target.merged_delta(), source.merged_delta(), atol=1e-6)

    again = OFTModule(layer, "unet", "c", block_size=source.block_size, side=side, share=share, scaled=scaled)
    again.load_state(source.state())
    assert torch.equal(again.weight, source.weight)


def test_blocks_for_comfyui():
    """Strictly upper triangular, one per place, Q = B − Bᵀ, W' = RᵀW."""
    layer, adapter, _ = make("linear", OFTSide.OUTPUT, share=True)
    blocks = adapter.parts()[OUTPUT].double()
    assert blocks.shape == (5, 4, 4) and not blocks.tril().any()
    q, identity = blocks - blocks.transpose(1, 2), torch.eye(4, dtype=torch.float64)
    rotation = torch.block_diag(*((identity + q) @ torch.linalg.inv(identity - q)))
    expected = rotation.t() @ layer.weight.double()
    assert (adapter.merged_delta() + layer.weight - expected).abs().max() < 1e-6  # float32


@pytest.mark.parametrize("marker", [None, torch.tensor(True), torch.tensor(1.0), torch.tensor(False)])
@pytest.mark.parametrize("scaled", [None, OFTScaleMode.ELEMENTS, OFTScaleMode.ROW])
@pytest.mark.parametrize("name", ["linear", "conv 3x3"])
def test_files_of_upstream(name, scaled, marker):
    """OneTrainer's weight, with its marker to be divided by 2√(b − 1); its rotation is the series."""
    layer, adapter, x = make(name, scaled=scaled, neumann=True)
    stored = torch.randn_like(adapter.weight) * 0.1
    adapter.load_parts({INPUT: stored} | ({} if marker is None else {MARKER: marker}))
    numbers = stored.double() / (2 * 3**0.5 if marker is not None and marker else 1)
    expected = layer_output(layer, x.double(), expected_weight(layer, dense_rotation(adapter, numbers), adapter.side))
    assert (layer(x) - expected).abs().max() < 1e-5  # float32
    assert adapter.forward_scale == {None: 1, OFTScaleMode.ELEMENTS: 6**-0.5}.get(scaled, 0.5 * 3**-0.5)


def test_general_blocks_and_their_bound():
    layer, adapter, _ = make("linear", OFTSide.OUTPUT)
    blocks = torch.randn(5, 4, 4) * 0.1
    adapter.load_parts({OUTPUT: blocks})
    q = blocks - blocks.transpose(1, 2)
    assert torch.allclose(adapter.weight, q[:, *torch.triu_indices(4, 4, 1)])
    for bound in (1e3, 0.2):
        adapter.load_parts({OUTPUT: blocks, "alpha": torch.tensor(bound)})
        found = adapter.parts()[OUTPUT]
        expected = min(bound, q.norm().item())
        # float32
        assert abs((found - found.transpose(1, 2)).norm().item() - expected) < 1e-5 * expected


def test_continuing_through_a_set():
    source = AdapterSet("unet", root_model(), TrainConfig(peft_type=PeftType.OFT_2, oft_block_size=2))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(std=0.1)
    config = TrainConfig(peft_type=PeftType.LORA, oft_scaled=True, oft_block_size=16)
    target = AdapterSet("unet", root_model(), config, start=source.layers())
    assert target.adapter_class is OFTModule
    for name, adapter in target.adapters.items():
        assert adapter.block_size == 2 and adapter.forward_scale == 1  # n is 1
        assert torch.equal(adapter.weight, source.adapters[name].weight)


@pytest.mark.parametrize(
    ("side", "parts", "words"),
    [
        (OFTSide.INPUT, {INPUT: torch.zeros(3, 5)}, "expected [blocks, b(b−1)/2]"),
        (OFTSide.INPUT, {INPUT: torch.zeros(4, 6)}, "made for another base model"),
        (OFTSide.OUTPUT, {OUTPUT: torch.zeros(5, 4, 3)}, "expected [blocks, b, b]"),
        (OFTSide.OUTPUT, {OUTPUT: torch.zeros(2, 7, 7)}, "made for another base model"),
    ],
)
def test_wrong_shapes_are_named(side, parts, words):
    layer, _, _ = make("linear", side)
    with pytest.raises(UserError) as error:
        OFTModule.options_of(parts, layer)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("side", "parts", "words"),
    [
        (OFTSide.INPUT, {OUTPUT: torch.zeros(5, 4, 4)}, "which is not OFT on inputs"),
        (OFTSide.INPUT, {MARKER: torch.tensor(True)}, "oft_R.weight is missing"),
        (OFTSide.INPUT, {INPUT: torch.zeros(1, 6)}, "expected [3, 6]"),
        (OFTSide.INPUT, {INPUT: torch.zeros(6)}, "expected [3, 6]"),
        (OFTSide.OUTPUT, {OUTPUT: torch.zeros(20, 4)}, "expected [blocks, b, b]"),
        (OFTSide.OUTPUT, {OUTPUT: torch.zeros(5, 4, 4), "rescale": torch.full((20, 1), 2.0)}, "rescale"),
    ],
)
def test_wrong_parts_are_named(side, parts, words):
    _, adapter, _ = make("linear", side)
    with pytest.raises(UserError) as error:
        adapter.load_parts(parts)
    assert words in str(error.value) and "unet.some.layer" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="weight of the saved state: found nothing"):
        adapter.load_state({})
