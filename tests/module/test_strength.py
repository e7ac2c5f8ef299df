"""How much of an adapter is applied: of every kind, hooked and merged."""

from modules.module.AdapterSet import AdapterSet
from modules.module.DiffFileKind import DIFF, DIFF_BIAS
from modules.util.config.TrainConfig import TrainConfig
from tests.adapters import SMALL_KINDS

import torch
from torch import Tensor, nn

import pytest

KINDS = {**SMALL_KINDS, "lokr of whole factors": {"peft_type": "LOKR", "lokr_dim": 1000}, "diff": None}
ROTATIONS = ("oft", "oft on outputs")


class Layers(nn.Module):
    """A linear layer and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.linear, self.conv = nn.Linear(8, 12), nn.Conv2d(4, 8, 3, padding=1)
        for tensor in self.parameters():
            tensor.data.normal_(std=0.3, generator=generator)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.conv(image)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(5, 8, generator=generator), torch.randn(2, 4, 6, 6, generator=generator)


def trained(kind: str, seed: int = 5) -> dict[str, dict[str, Tensor]]:
    """What a file of that kind would hold for `Layers`, layer by layer."""
    generator = torch.Generator().manual_seed(seed)
    layers = Layers()
    if KINDS[kind] is None:
        return {
            name: {
                DIFF: 0.1 * torch.randn(layer.weight.shape, generator=generator),
                DIFF_BIAS: 0.1 * torch.randn(layer.bias.shape, generator=generator),
            }
            for name, layer in layers.named_children()
        }
    config = TrainConfig.from_dict({"lora_rank": 2, "lora_alpha": 3.0, **KINDS[kind]})
    adapters = AdapterSet("unet", layers, config)
    for parameter in adapters.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return {name: {part: tensor.clone() for part, tensor in parts.items()} for name, parts in adapters.layers().items()}


def run(*applied: tuple[dict, float]) -> tuple[Tensor, ...]:
    """Outputs with adapters of some strengths, one after the other."""
    layers = Layers().requires_grad_(False)
    for parts, strength in applied:
        AdapterSet.from_parts("unet", layers, parts, strength=strength).eval().hook()
    with torch.no_grad():
        return layers(*inputs())


def changes(parts: dict, strength: float) -> dict[str, Tensor]:
    adapters = AdapterSet.from_parts("unet", Layers(), parts, strength=strength)
    return {name: adapter.merged_delta() for name, adapter in adapters.adapters.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_an_adapter_is_the_adapter_and_nothing_is_nothing(kind):
    parts = trained(kind)
    bare = Layers()(*inputs())
    whole, none = run((parts, 1.0)), run((parts, 0.0))
    for plain, one, zero in zip(bare, whole, none, strict=True):
        torch.testing.assert_close(zero, plain.detach(), rtol=1e-6, atol=1e-6)
        assert (one - plain).abs().max() > 1e-2, "else the test shows nothing"


@pytest.mark.parametrize("strength", [-0.7, 0.3, 1.5])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ROTATIONS])
def test_the_change_is_proportional(kind, strength):
    parts = trained(kind)
    whole, share = changes(parts, 1.0), changes(parts, strength)
    for name in whole:
        torch.testing.assert_close(share[name], strength * whole[name], rtol=1e-5, atol=1e-6)
    bare = Layers()(*inputs())
    for plain, one, some in zip(bare, run((parts, 1.0)), run((parts, strength)), strict=True):
        torch.testing.assert_close(some, plain + strength * (one - plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.5])
@pytest.mark.parametrize("kind", ROTATIONS)
def test_a_weaker_rotation_is_a_rotation(kind, strength):
    parts = trained(kind)
    weight = Layers().linear.weight.detach()
    turned = weight + changes(parts, strength)["linear"]
    # which side turns decides which products of the weight with itself stay
    kept = (lambda w: w.T @ w) if kind == "oft on outputs" else (lambda w: w @ w.T)
    torch.testing.assert_close(kept(turned), kept(weight), rtol=1e-5, atol=1e-5)
    whole = changes(parts, 1.0)["linear"]
    # to first order the change is proportional; the generators here are about 0.1
    found = (turned - weight).norm() / whole.norm()
    assert abs(found - abs(strength)) < 0.05 * abs(strength)


def test_a_rotation_turned_back_is_none():
    parts = trained("oft")
    bare = Layers()(*inputs())
    for plain, both in zip(bare, run((parts, 1.0), (parts, -1.0)), strict=True):
        torch.testing.assert_close(both, plain.detach(), rtol=1e-5, atol=1e-5)


# left out: magnitudes, which count from the base's weights when hooked; and a rotation of outputs after a diff, whose
# change of the bias it turns, too
SECOND = ["lora", "loha", "lokr", "oft", "oft on outputs", "diff"]
PAIRS = [(first, second) for first in KINDS for second in SECOND if (first, second) != ("diff", "oft on outputs")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_adapters_follow_each_other(first, second):
    """Hooked one after the other they do what merging one after the other does."""
    applied = [(trained(first, 5), 0.8), (trained(second, 6), 1.2)]
    merged = Layers()
    for parts, strength in applied:
        AdapterSet.from_parts("unet", merged, parts, strength=strength).merge()
    for hooked, plain in zip(run(*applied), merged(*inputs()), strict=True):
        torch.testing.assert_close(hooked, plain.detach(), rtol=1e-5, atol=2e-5)
