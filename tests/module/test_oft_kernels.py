"""OFT on whole kernels of convolutions, as OneTrainer rotates them, against loops in float64."""

import copy

from modules.module.AdapterSet import AdapterSet
from modules.module.DoRAOFTModule import DoRAOFTModule
from modules.module.kernel_layout import KERNELS, fitting_layouts, kernel_width
from modules.module.oft_math import triangle_size
from modules.module.OFTModule import INPUT, MARKER, OFTModule
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.PeftType import PeftType
from modules.util.UserError import UserError
from tests.module.layer_checks import forward_and_backward, hooked_oft

import torch
from torch import Tensor, nn

import pytest

# name -> (layer, input shape, block size)
CASES = {
    "3x3": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 5, 6), 4),
    "across channels": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 5, 6), 6),
    "stride": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), (2, 8, 9, 8), 2),
    "dilation": (lambda: nn.Conv2d(4, 6, (3, 2), dilation=(2, 1)), (2, 4, 9, 8), 8),
    "circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), (2, 8, 6, 5), 4),
    "same": (lambda: nn.Conv2d(8, 12, (3, 5), padding="same"), (2, 8, 6, 5), 20),
    "one channel": (lambda: nn.Conv2d(1, 6, 3), (2, 1, 6, 5), 3),
}
EVERY = pytest.mark.parametrize("name", CASES)


def make(name: str, kind: type[OFTModule] = OFTModule, **options):
    """A layer, a hooked adapter that is not the identity any more, and an input."""
    torch.manual_seed(len(name))
    build, shape, size = CASES[name]
    return hooked_oft(build(), shape, kind, **({"block_size": size, "kernels": True} | options))


def block_of(numbers: Tensor, size: int, neumann: bool) -> Tensor:
    """R of one block in float64, from its numbers placed one by one; differentiable."""
    rows = [[torch.zeros((), dtype=torch.float64)] * size for _ in range(size)]
    own = iter(numbers)
    for row in range(size):
        for column in range(row + 1, size):
            value = next(own)
            rows[row][column], rows[column][row] = value, -value
    q, one = torch.stack([torch.stack(row) for row in rows]), torch.eye(size, dtype=torch.float64)
    if neumann:
        return one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    return (one + q) @ torch.linalg.inv(one - q)


def turned_by_hand(weight: Tensor, adapter: OFTModule, numbers: Tensor) -> Tensor:
    """Each output's i·kh·kw numbers, in their order in memory, block after block times R, in float64."""
    outputs = []
    for kernel in weight.double():
        row, pieces = kernel.reshape(-1), []
        for start in range(0, len(row), adapter.block_size):
            own = numbers[start // adapter.block_size if len(numbers) > 1 else 0]
            block = block_of(own, adapter.block_size, adapter.neumann)
            pieces.append(row[start : start + adapter.block_size] @ block)
        outputs.append(torch.cat(pieces).view(kernel.shape))
    return torch.stack(outputs)


def convolution(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return layer._conv_forward(x, weight, None if layer.bias is None else layer.bias.to(weight.dtype))


@EVERY
@pytest.mark.parametrize("options", [{}, {"share": True}, {"neumann": True}, {"scaled": OFTScaleMode.ROW}])
@pytest.mark.parametrize("channels_last", [False, True])
def test_value_and_gradients_equal_the_loops(name, options, channels_last):
    layer, adapter, x = make(name, **options)
    if channels_last:
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    assert adapter.kernels and adapter.blocks * adapter.block_size == layer.weight[0].numel()
    assert adapter.weight.shape[0] == (1 if "share" in options else adapter.blocks)
    y, grad = forward_and_backward(layer, x)

    wide, numbers = x.detach().double().requires_grad_(), adapter.weight.detach().double().requires_grad_()
    weight = turned_by_hand(layer.weight, adapter, numbers * adapter.forward_scale)
    reference = convolution(layer, wide, weight)
    reference.backward(grad.double())
    for found, expected in ((y, reference), (x.grad, wide.grad), (adapter.weight.grad, numbers.grad)):
        # relative to the largest entry, as sums of float32 products carry an error of that size
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1)
    assert (adapter.merged_delta() + layer.weight - weight).abs().max() < 1e-6  # float32
    plain = convolution(layer, x.detach(), layer.weight)
    assert (y - plain).abs().max() > 1e-2, "it is no rotation by nothing"


@EVERY
def test_the_opposite_direction_and_the_other_layout_are_told_apart(name):
    layer, adapter, x = make(name)
    numbers = adapter.weight.detach().double()
    back = convolution(layer, x.double(), turned_by_hand(layer.weight, adapter, -numbers))
    assert (layer(x) - back).abs().max() > 1e-2
    if layer.in_channels % adapter.block_size == 0:
        channels = OFTModule(layer, "unet", "b", block_size=adapter.block_size, share=True)
        shared = OFTModule(layer, "unet", "c", block_size=adapter.block_size, share=True, kernels=True)
        for other in (channels, shared):
            with torch.no_grad():
                other.weight.copy_(numbers[: len(other.weight)])
        assert (channels.merged_delta() - shared.merged_delta()).abs().max() > 1e-2


@EVERY
@pytest.mark.parametrize("kind", [OFTModule, DoRAOFTModule])
def test_hooked_equals_merged_and_fresh_changes_nothing(name, kind):
    layer, adapter, x = make(name, kind)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    base, hooked = layer.weight.clone(), layer(x)
    adapter.unhook()
    plain = layer(x)
    adapter.merge()
    assert torch.allclose(hooked, layer(x), atol=1e-5)  # float32, in another order
    assert not torch.allclose(hooked, plain, atol=1e-2)
    adapter.unmerge()
    assert torch.equal(layer.weight, base)
    fresh = kind(layer, "unet", "b", block_size=4, kernels=True)
    fresh.hook()
    assert torch.equal(layer(x), plain) and not fresh.merged_delta().any()


def test_lengths_of_outputs_stay_under_the_rotation_and_follow_dora():
    layer, adapter, _ = make("3x3", DoRAOFTModule)
    with torch.no_grad():
        adapter.magnitude.mul_(1.5)
    merged = layer.weight + adapter.merged_delta()
    assert torch.allclose(merged.flatten(1).norm(dim=1), adapter.magnitude, rtol=1e-5)  # float32
    assert adapter.parts()["dora_scale"].shape == (12, 1, 1, 1)


@pytest.mark.parametrize("way", ["autocast", "half"])
def test_half_precision_only_rounds_the_result(way):
    """The rotated weight in bfloat16 would lose what a small rotation adds to it."""
    layer, adapter, _ = make("3x3")
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
        layer.bias.zero_()
        adapter.weight.normal_(std=1e-3)
    x = torch.randn(8, 8, 20, 20).bfloat16()
    weight = turned_by_hand(layer.weight, adapter, adapter.weight.detach().double()).detach()
    exact = convolution(layer, x.double(), weight)
    if way == "half":
        layer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        y = layer(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and adapter.weight.grad.dtype == torch.float32 and adapter.weight.grad.any()

    def error(found: Tensor) -> float:
        return (found.double() - exact).square().mean().sqrt().item()

    least = error(exact.bfloat16())
    rounded = convolution(layer, x.double(), weight.bfloat16().double()).bfloat16()
    assert error(y) < 1.05 * least < 1.2 * least < error(rounded)


def test_a_layer_that_is_not_plain_is_called():
    layer, adapter, x = make("3x3", DoRAOFTModule)
    expected = layer(x)
    adapter.unhook()
    layer.forward = lambda x: type(layer).forward(layer, x)
    adapter.hook()
    x.requires_grad_()
    assert torch.allclose(layer(x), expected, atol=1e-5)  # float32, another order
    layer(x).sum().backward()
    assert x.grad.any() and adapter.weight.grad.any()


def test_block_sizes_and_layers_with_one_layout():
    adapter = OFTModule(nn.Conv2d(4, 8, 3), "unet", "a", block_size=16, kernels=True)
    assert (adapter.block_size, adapter.blocks) == (18, 2)
    assert list(adapter.notes.values()) == [
        "unet.a: block size 16 → 18, the nearest divisor of its 36 numbers of a kernel"
    ]
    # 16 and 8 are equally near to 12: the smaller one, as OneTrainer has it
    assert OFTModule(nn.Conv2d(16, 8, (1, 4)), "unet", "a", block_size=12, kernels=True).block_size == 8
    for layer in (nn.Linear(8, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)):
        both = [OFTModule(layer, "unet", "a", block_size=4, kernels=kernels) for kernels in (False, True)]
        with torch.no_grad():
            for one in both:
                one.weight.fill_(0.3)
        same = torch.equal(both[0].merged_delta(), both[1].merged_delta())
        assert same == (kernel_width(layer) is None) and both[1].kernels != same
    grouped = OFTModule(nn.Conv2d(8, 8, 3, groups=2), "unet", "a", block_size=4, kernels=True)
    assert not grouped.kernels and grouped.blocks == 2
    assert grouped.notes["kernels"] == (
        "oft_kernels: unet.a has groups; its input channels are rotated instead of whole kernels"
    )


@pytest.mark.parametrize("share", [False, True])
def test_dropout_leaves_out_blocks_of_kernels(share):
    layer, adapter, x = make("3x3", dropout=0.5, share=share)
    torch.manual_seed(0)
    adapter.prepare([adapter])
    kept = (adapter.rotation() != torch.eye(4)).flatten(1).any(1)
    assert 0 < kept.sum() < len(kept) == adapter.blocks == 18
    trained = layer(x)
    assert torch.equal(layer(x), trained)  # one draw per step
    adapter.eval()
    assert not torch.equal(layer(x), trained)


def test_the_layout_of_parts():
    """Shapes tell it, but for a single row that fits both, which needs a mark."""
    conv, row = nn.Conv2d(8, 12, 3), torch.zeros(1, triangle_size(4))

    def kernels(parts: dict[str, Tensor]) -> bool:
        return OFTModule.options_of(parts, conv)["oft_kernels"]

    assert kernels({INPUT: row.expand(18, -1)}) and not kernels({INPUT: row.expand(2, -1)})
    assert kernels({INPUT: torch.zeros(1, triangle_size(9))}), "9 divides no 8 channels"
    assert not kernels({INPUT: row})
    assert kernels({INPUT: row, KERNELS: torch.tensor(True)}) and kernels({INPUT: row, MARKER: torch.tensor(True)})
    assert "oft_kernels" not in OFTModule.options_of({INPUT: row}, nn.Linear(8, 12))
    assert fitting_layouts(nn.Conv2d(18, 9, 3, groups=9), 1, 2) == (True, False), "groups have one layout"
    with pytest.raises(UserError) as error:
        kernels({INPUT: row.expand(3, -1)})
    assert str(error.value) == (
        "oft_R.weight has 3 blocks of 4, which make up neither the layer's 8 input channels nor the 72 numbers of its "
        "kernels. It belongs to a layer of another size."
    )


def root_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(36, 24))


@pytest.mark.parametrize("share", [False, True])
def test_continuing_and_resuming_a_set(share):
    config = TrainConfig(
        peft_type=PeftType.OFT_2, oft_block_size=4, oft_block_share=share, oft_kernels=True, oft_scaled=True
    )
    source = AdapterSet("unet", root_model(), config)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(std=0.3)
    parts = source.layers()
    assert KERNELS in parts["0"] and KERNELS not in parts["1"] and KERNELS not in parts["3"]
    start = AdapterSet("unet", root_model(), TrainConfig(), start=parts)
    for name, adapter in start.adapters.items():
        assert torch.allclose(adapter.merged_delta(), source.adapters[name].merged_delta(), atol=1e-6)  # float32
    # a layer that the file lacks gets the file's layout, though most of the file's layers have none
    fewer = AdapterSet("unet", nn.ModuleList([root_model()[0], *root_model()]), TrainConfig(), start={
        "1": parts["0"], "2": parts["1"], "4": parts["3"]
    })  # fmt: skip
    assert fewer.adapters["0"].kernels
    resumed = AdapterSet("unet", root_model(), config)
    resumed.load_state_dict(copy.deepcopy(source.state_dict()))
    for own, other in zip(resumed.parameters(), source.parameters(), strict=True):
        assert torch.equal(own, other)
    channels = AdapterSet("unet", root_model(), config.model_copy(update={"oft_kernels": False}))
    with pytest.raises(UserError, match="it rotates whole kernels, and the adapter here channels. Set oft_kernels"):
        channels.load_layers(parts)


def test_a_set_learns_a_rotation_of_kernels():
    """Gradient descent finds a rotation that no rotation of channels could make."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 6, 3, bias=False), torch.randn(30, 2, 6, 6)
    hidden = OFTModule(layer, "unet", "a", block_size=6, kernels=True)
    with torch.no_grad():
        hidden.weight.normal_(std=0.15)
        target = convolution(layer, x, layer.weight + hidden.merged_delta())
    losses = {}
    for kernels in (True, False):
        adapter = OFTModule(layer, "unet", "b", block_size=6, kernels=kernels)
        adapter.hook()
        optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02)
        for _ in range(150):
            loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        adapter.unhook()
        losses[kernels] = loss.item() / target.square().mean().item()
    assert losses[True] < 1e-4 < 0.05 < losses[False]
