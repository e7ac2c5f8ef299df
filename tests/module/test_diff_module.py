"""Weight differences as adapters: what a file holds is added, to weight and bias."""

from modules.module.AdapterSet import AdapterSet
from modules.module.DiffModule import DiffModule
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError

import torch
from torch import nn

import pytest

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 5, 5)),
}


def make(name: str):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    root = nn.Sequential(build())
    parts = {"diff": torch.randn(root[0].weight.shape), "diff_b": torch.randn(4)}
    return root, parts, torch.randn(shape)


def changed(root: nn.Sequential, weight, bias) -> nn.Sequential:
    """The same layer with weight and bias changed by hand."""
    torch.manual_seed(0)
    other = nn.Sequential(LAYERS["linear" if isinstance(root[0], nn.Linear) else "conv"][0]())
    with torch.no_grad():
        other[0].weight += weight
        other[0].bias += bias
    return other


@pytest.mark.parametrize("name", LAYERS)
def test_hooked_merged_and_changed_by_hand_are_the_same(name):
    root, parts, x = make(name)
    plain, weight, bias = root(x), root[0].weight.clone(), root[0].bias.clone()
    expected = changed(root, parts["diff"], parts["diff_b"])(x)
    adapters = AdapterSet.from_parts("unet", root, {"0": parts})
    adapters.hook()
    assert torch.allclose(root(x), expected, atol=1e-5)  # float32 sums in another order
    adapters.unhook()
    adapters.merge()
    assert torch.equal(root(x), expected)
    adapters.unmerge()
    assert torch.equal(root(x), plain)
    assert torch.equal(root[0].weight, weight) and torch.equal(root[0].bias, bias)
    for part, tensor in adapters.layers()["0"].items():
        assert torch.equal(tensor, parts[part])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("part", ["diff", "diff_b"])
def test_either_part_alone(name, part):
    root, parts, x = make(name)
    own = {"diff": torch.zeros_like(parts["diff"]), "diff_b": torch.zeros(4), part: parts[part]}
    expected = changed(root, own["diff"], own["diff_b"])(x)
    adapters = AdapterSet.from_parts("unet", root, {"0": {part: parts[part]}})
    adapters.hook()
    assert torch.allclose(root(x), expected, atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("name", LAYERS)
def test_it_can_be_trained_on(name):
    root, parts, x = make(name)
    adapters = AdapterSet.from_parts("unet", root, {"0": parts})
    adapters.hook()
    root(x).square().sum().backward()
    found = [parameter.grad for parameter in adapters.parameters()]
    other = changed(root, parts["diff"], parts["diff_b"])
    other(x).square().sum().backward()
    for gradient, expected in zip(found, (other[0].weight.grad, other[0].bias.grad), strict=True):
        # float32 sums in another order
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()
    roles = [get_parameter_info(parameter).role for parameter in adapters.parameters()]
    assert roles == [ParameterRole.HIDDEN, ParameterRole.VECTOR]


def test_layers_that_the_file_lacks_start_at_zero():
    root = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    x = torch.randn(2, 4)
    from modules.util.config.TrainConfig import TrainConfig

    adapters = AdapterSet("unet", root, TrainConfig(), start={"0": {"diff": torch.zeros(4, 4)}})
    plain = root(x)
    adapters.hook()
    assert torch.equal(root(x), plain)
    assert set(adapters.state_dict()) == {"unet.0.diff", "unet.0.diff_b", "unet.1.diff"}


def test_wrong_parts_are_named():
    layer = nn.Linear(6, 4, bias=False)
    adapter = DiffModule(layer, "unet", "a")
    with pytest.raises(UserError, match=r"unet\.a.*diff has the shape \[4, 7\], expected \[4, 6\]"):
        adapter.load_parts({"diff": torch.zeros(4, 7)})
    with pytest.raises(UserError, match=r"unet\.a.*diff_b, but the layer has no bias"):
        adapter.load_parts({"diff": torch.zeros(4, 6), "diff_b": torch.zeros(4)})
    with pytest.raises(UserError, match="alpha, which is not a weight difference"):
        adapter.load_parts({"diff": torch.zeros(4, 6), "alpha": torch.ones(())})
