"""The adapter contract for LoRA on single layers."""

import math

from modules.module.LoRAModule import ALPHA, DOWN, MID, UP, LoRAModule
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.keyed_random import layer_generator
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.module.layer_checks import check_half_precision, forward_and_backward

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pytest

# name -> (layer, input shape); the large ones take the fused path of low_rank.py, see LARGE_INPUT there
CASES = {
    "linear": (lambda: nn.Linear(12, 20), (3, 7, 12)),
    "linear 2d": (lambda: nn.Linear(12, 20, bias=False), (5, 12)),
    "linear large": (lambda: nn.Linear(64, 96), (2, 1100, 64)),
    "linear large, few rows": (lambda: nn.Linear(1024, 160), (130, 1024)),
    "conv 3x3": (lambda: nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 8)),
    "conv stride 2": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 9, 8)),
    "conv 1x1": (lambda: nn.Conv2d(6, 10, 1), (2, 6, 5, 4)),
    "conv dilated": (lambda: nn.Conv2d(6, 10, 3, padding=2, dilation=2, bias=False), (2, 6, 9, 8)),
    "conv grouped": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3), (2, 6, 9, 8)),
    "conv circular": (lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="circular"), (2, 6, 9, 8)),
    "conv same": (lambda: nn.Conv2d(6, 10, (3, 5), padding="same"), (2, 6, 9, 8)),
    "conv large": (lambda: nn.Conv2d(32, 24, 3, padding=1), (2, 32, 48, 48)),
    "conv large stride 2": (lambda: nn.Conv2d(32, 24, 3, stride=2, padding=1), (2, 32, 48, 48)),
    "conv large, few pixels": (lambda: nn.Conv2d(1024, 300, 3, padding=1), (2, 1024, 8, 8)),
    "conv large 1x1": (lambda: nn.Conv2d(32, 24, 1), (2, 32, 48, 48)),
}


def make(name: str, dtype: torch.dtype = torch.float32, rank: int = 4, alpha: float = 2.0, **options):
    """A layer, a hooked adapter that is not zero any more, and an input."""
    torch.manual_seed(len(name))
    build, shape = CASES[name]
    layer = build().to(dtype)
    adapter = LoRAModule(layer, "unet", "some.layer", rank=rank, alpha=alpha, dtype=dtype, **options)
    with torch.no_grad():
        adapter.up.normal_(std=0.1)
    adapter.hook()
    return layer, adapter, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_fresh_adapter_changes_nothing(name):
    layer, adapter, x = make(name)
    adapter.unhook()
    expected = layer(x)
    torch.nn.init.zeros_(adapter.up)
    adapter.hook()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_hooked_equals_merged(name):
    layer, adapter, x = make(name)
    base = layer.weight.clone()
    hooked = layer(x)
    adapter.unhook()
    plain = layer(x)
    adapter.merge()
    merged = layer(x)
    # float32 sums over at most 9·1024 terms in another order
    assert torch.allclose(hooked, merged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hooked, plain, atol=1e-3)
    adapter.unmerge()
    assert torch.equal(layer.weight, base)


IMAGE_CASES = [name for name in CASES if make(name)[2].dim() == 4]


@pytest.mark.parametrize(
    ("name", "channels_last"), [(name, False) for name in CASES] + [(name, True) for name in IMAGE_CASES]
)
def test_gradients_equal_float64_reference(name, channels_last):
    layer, adapter, x = make(name)
    if channels_last:
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    y, grad = forward_and_backward(layer, x)
    if channels_last:
        assert y.is_contiguous(memory_format=torch.channels_last)

    wide = [t.detach().double().requires_grad_() for t in (x, adapter.down, adapter.up)]
    delta = (adapter.scale * wide[2].flatten(1) @ wide[1].flatten(1)).view(layer.weight.shape)
    weight = layer.weight.double() + delta
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, nn.Linear):
        reference = F.linear(wide[0], weight, bias)
    else:
        reference = layer._conv_forward(wide[0], weight, bias)
    reference.backward(grad.double())
    for found, expected in zip((x, adapter.down, adapter.up), wide, strict=True):
        # relative to the largest entry, as sums of float32 products carry an error of that size
        error = (found.grad.double() - expected.grad).abs().max() / expected.grad.abs().max()
        assert error < 3e-6


def test_gradient_only_where_needed():
    layer, adapter, x = make("linear large")
    layer(x).sum().backward()  # x needs none
    assert x.grad is None and adapter.down.grad is not None
    adapter.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ["linear", "linear large", "conv 3x3", "conv large"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    layer, adapter, x = make(name)
    layer(x).square().sum().backward()
    expected = [adapter.down.grad.clone(), adapter.up.grad.clone()]
    adapter.zero_grad()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(adapter.down.grad, expected[0]) and torch.equal(adapter.up.grad, expected[1])


@pytest.mark.parametrize("name", ["linear", "linear large", "conv 3x3", "conv large"])
def test_autocast_and_half_base_keep_float32_parameters(name):
    layer, adapter, x = make(name)
    check_half_precision(layer, adapter.down, x)


@pytest.mark.parametrize("name", CASES)
def test_the_output_may_be_changed_in_place(name):
    layer, _, x = make(name)
    x.requires_grad_()
    torch.relu_(layer(x)).sum().backward()
    found = x.grad.clone()
    x.grad = None
    torch.relu(layer(x)).sum().backward()
    assert torch.equal(x.grad, found)


def test_compiles_without_graph_break():
    layer, _, x = make("linear")
    expected = layer(x)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), expected)


def test_hook_restores_the_layer():
    layer, adapter, x = make("linear")
    assert layer.forward == adapter.forward
    adapter.hook()  # twice does nothing
    adapter.unhook()
    assert "forward" not in vars(layer)
    keys = layer.state_dict().keys()
    adapter.hook()
    assert layer.state_dict().keys() == keys and not layer.weight.requires_grad

    # a layer that somebody else had already replaced is called, and gets its own forward back
    other = nn.Linear(12, 20)
    other.forward = own = lambda x: torch.zeros(*x.shape[:-1], 20)
    second = LoRAModule(other, "unet", "other", rank=2, alpha=1)
    nn.init.ones_(second.up)
    second.hook()
    assert torch.allclose(other(x), second.scale * (x @ second.down.t()).sum(-1, keepdim=True).expand(-1, -1, 20))
    second.unhook()
    assert other.forward is own


def test_roles_and_pairs():
    _, adapter, _ = make("conv 3x3")
    down, up = get_parameter_info(adapter.down), get_parameter_info(adapter.up)
    assert (down.role, up.role) == (ParameterRole.LORA_DOWN, ParameterRole.LORA_UP)
    assert (down.component, down.layer) == ("unet", "some.layer")
    assert down.name == "unet.some.layer.lora_down.weight" == up.pair
    assert up.name == "unet.some.layer.lora_up.weight" == down.pair
    adapter.to(torch.float64)
    assert get_parameter_info(adapter.down) is down


def test_start_values():
    layer = nn.Conv2d(40, 10, 3)
    adapter = LoRAModule(layer, "unet", "a", rank=64, alpha=1, seed=5)
    bound = 1 / math.sqrt(40 * 9)
    assert adapter.down.shape == (64, 40, 3, 3) and adapter.up.shape == (10, 64, 1, 1)
    assert 0.99 * bound < adapter.down.abs().max() <= bound
    assert not adapter.up.any()
    torch.manual_seed(123)  # the global generator plays no part
    assert torch.equal(LoRAModule(layer, "unet", "a", rank=64, alpha=1, seed=5).down, adapter.down)
    for other in (("unet", "b", 5), ("te", "a", 5), ("unet", "a", 6)):
        assert not torch.equal(LoRAModule(layer, *other[:2], rank=64, alpha=1, seed=other[2]).down, adapter.down)


def test_rank_above_the_layer_works_and_is_noted():
    layer, adapter, x = make("linear", rank=40)
    assert list(adapter.notes.values()) == ["unet.some.layer: rank 40 is more than its smaller side 12"]
    hooked = layer(x)
    adapter.unhook()
    adapter.merge()
    assert torch.allclose(hooked, layer(x), atol=1e-5)
    assert not make("linear", rank=12)[1].notes


@pytest.mark.parametrize("name", ["linear", "conv 3x3"])
def test_dropout_only_while_training(name):
    layer, adapter, x = make(name, dropout=0.5)
    layer.eval()  # the base model's mode does not matter
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    adapter.eval()
    assert torch.equal(layer(x), layer(x))
    without, _, _ = make(name)
    assert torch.equal(layer(x), without(x))


def test_dropout_keeps_the_mean():
    layer, adapter, x = make("linear", dropout=0.5)
    torch.manual_seed(0)
    mean = torch.stack([layer(x) for _ in range(3000)]).mean(0)
    adapter.eval()
    # standard error of 3,000 draws with a spread of about 0.2
    assert (mean - layer(x)).abs().max() < 0.03


def test_loading_parts():
    _, source, _ = make("conv 1x1")
    layer, adapter, x = make("conv 1x1", alpha=9.0)
    adapter.load_parts(source.parts())
    assert adapter.scale == source.scale and torch.equal(adapter.up, source.up)
    # as linear matrices, and without alpha
    adapter.load_parts({DOWN: source.down.flatten(1), UP: source.up.flatten(1)})
    assert torch.equal(adapter.down, source.down) and adapter.scale == 1


def test_loading_a_middle_kernel():
    layer, adapter, x = make("conv 3x3")
    down, mid, up = torch.randn(4, 6, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(10, 4, 1, 1)
    adapter.load_parts({DOWN: down, MID: mid, UP: up, ALPHA: torch.tensor(4.0)})
    expected = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up)
    assert torch.allclose(layer(x) - layer._conv_forward(x, layer.weight, layer.bias), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({DOWN: None}, "lora_down.weight is missing"),
        ({DOWN: torch.zeros(8, 12), UP: torch.zeros(20, 8)}, "Set lora_rank to 8"),
        ({UP: torch.zeros(21, 4)}, "expected [20, 4]"),
        ({"dora_scale": torch.ones(1, 12)}, "which is not LoRA"),
    ],
)
def test_wrong_parts_are_named(change, words):
    _, adapter, _ = make("linear")
    parts = {name: tensor for name, tensor in (adapter.parts() | change).items() if tensor is not None}
    with pytest.raises(UserError) as error:
        adapter.load_parts(parts)
    assert words in str(error.value) and "unet.some.layer" in str(error.value) and "\n" not in str(error.value)


def orthonormal(count: int, size: int) -> torch.Tensor:
    """`count` orthonormal columns of length `size`, in any direction alike."""
    return torch.linalg.qr(torch.randn(size, count))[0]


def test_normal_start_values():
    layer = nn.Conv2d(40, 10, 3)
    adapter = LoRAModule(layer, "unet", "a", rank=64, alpha=1, init=LoRAInit.NORMAL)
    assert not adapter.up.any()
    # 23,040 draws: relative standard errors of 0.5 % (variance 1 %), and a kurtosis of 3 ± 0.03 (uniform: 1.8)
    assert abs(adapter.down.var() * 360 - 1) < 0.04
    assert abs(adapter.down.pow(4).mean() / adapter.down.var() ** 2 - 3) < 0.15


@pytest.mark.parametrize(("rank", "wide", "tall"), [(4, 256, 128), (64, 128, 512), (16, 512, 64)])
def test_output_variance_of_a_scaled_step_is_the_squared_learning_rate(rank, wide, tall):
    """DESIGN §6, law (a): ΔB with equal singular values of η·√(out/rank), inputs of variance 1, alpha = rank."""
    torch.manual_seed(0)
    eta = 0.02
    layer = nn.Linear(wide, tall, bias=False)
    nn.init.zeros_(layer.weight)
    adapter = LoRAModule(layer, "unet", "a", rank=rank, alpha=rank, init=LoRAInit.NORMAL, seed=rank)
    with torch.no_grad():
        adapter.up.add_(eta * (tall / rank) ** 0.5 * orthonormal(rank, tall))
    adapter.hook()
    variance = layer(torch.randn(4000, wide)).var()
    # A has rank·wide draws (a variance's relative error is √(2/draws), 4.4 % for the smallest), inputs add less
    assert abs(variance / eta**2 - 1) < 4 * (2 / (rank * wide)) ** 0.5 + 0.01


@pytest.mark.parametrize("layer", [nn.Linear(20, 48), nn.Conv2d(6, 40, 3)])
def test_orthonormal_start_values(layer):
    adapter = LoRAModule(layer, "unet", "a", rank=16, alpha=16, init=LoRAInit.ORTHONORMAL, seed=1)
    up = adapter.up.flatten(1).double()
    assert not adapter.down.any() and adapter.up.shape[:2] == (layer.weight.shape[0], 16)
    assert (up.T @ up - torch.eye(16)).abs().max() < 1e-6  # rounded to float32 once
    again = LoRAModule(layer, "unet", "a", rank=16, alpha=16, init=LoRAInit.ORTHONORMAL, seed=1)
    assert torch.equal(again.up, adapter.up)
    adapter.hook()
    x = torch.randn(3, *([20] if isinstance(layer, nn.Linear) else [6, 5, 5]))
    layer(x).sum().backward()
    assert adapter.down.grad.any() and not adapter.up.grad.any()  # the gradient starts at the zero factor


def test_orthonormal_columns_point_anywhere():
    """QR alone prefers signs; the mean over draws of a uniform column is 0."""
    layer = nn.Linear(4, 8)
    draws = torch.stack(
        [
            LoRAModule(layer, "unet", "a", rank=4, alpha=1, init=LoRAInit.ORTHONORMAL, seed=seed).up.detach()
            for seed in range(400)
        ]
    )
    # entries of spread 1/√8, 400 draws: a standard error of 0.018
    assert draws.mean(0).abs().max() < 0.08


def test_there_are_at_most_as_many_orthonormal_columns_as_outputs():
    """alpha shrinks with the rank, so that steps keep their size."""
    adapter = LoRAModule(nn.Linear(20, 8), "unet", "a", rank=16, alpha=4, init=LoRAInit.ORTHONORMAL)
    assert (adapter.rank, adapter.alpha.item(), adapter.scale) == (8, 2, 0.25)
    (note,) = adapter.notes.values()
    assert note == "unet.a: rank 16 → 8, its outputs, as lora_init ORTHONORMAL allows no more"
    assert not LoRAModule(nn.Linear(20, 8), "unet", "a", rank=8, alpha=1, init=LoRAInit.ORTHONORMAL).notes


def test_kaiming_start_values_stay_what_they_were():
    """Older runs and their backups rely on them."""
    down = LoRAModule(nn.Linear(40, 10), "unet", "a", rank=4, alpha=1, seed=5).down
    expected = torch.empty(4, 40)
    nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=layer_generator(5, "unet.a"))
    assert torch.equal(down, expected)
