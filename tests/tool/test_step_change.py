"""What one step changes: numbers worked out by hand, and layers as the adapters themselves compute them."""

import math

from modules.module.AdapterSet import AdapterSet
from modules.module.WeightSet import WeightSet
from modules.tool.coord_check.CheckedBase import measured_layers
from modules.tool.coord_check.step_change import (
    MOST_ROWS,
    MOST_SIDE,
    MeasuredLayer,
    kept_inputs,
    layer_output,
    measure_step,
    record_inputs,
    relative_change,
)
from modules.util.config.TrainConfig import TrainConfig

import torch
from torch import Tensor, nn

import pytest

KINDS = {
    "LoRA": {"peft_type": "LORA", "lora_rank": 2},
    "DoRA": {"peft_type": "LORA", "lora_rank": 2, "lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 4},
    "OFT on outputs": {"peft_type": "OFT_2", "oft_block_size": 4, "oft_side": "OUTPUT"},
    "DoRA-OFT": {"peft_type": "OFT_2", "oft_block_size": 4, "lora_decompose": True},
    "LoHa": {"peft_type": "LOHA", "lora_rank": 2},
    "LoKr": {"peft_type": "LOKR", "lora_rank": 2},
}
# each with the shape of its inputs
LAYERS = {
    "linear": (lambda: nn.Linear(8, 12), (5, 8)),
    "without bias": (lambda: nn.Linear(8, 12, bias=False), (5, 8)),
    "convolution": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 6, 6)),
    "circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), (2, 8, 6, 6)),
}


class TwoLayers(nn.Module):
    """y = second(first(x)), from known weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2))
            self.second.weight.copy_(torch.ones(1, 2))
            self.first.bias.zero_()
            self.second.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def plain(layer: nn.Module) -> MeasuredLayer:
    return MeasuredLayer(layer, lambda: layer.weight.detach().float())


def test_a_step_of_gradient_descent_gives_the_numbers_worked_out_by_hand():
    """x = (3, 4), so both layers return (3, 4) and 7. The loss is the output, and the rate 0.01."""
    model, x = TwoLayers(), torch.tensor([[3.0, 4.0]])
    optimizer = torch.optim.SGD([model.first.weight, model.second.weight], lr=0.01)

    def step() -> None:
        model(x).sum().backward()
        optimizer.step()

    layers = {"first": plain(model.first), "second": plain(model.second)}
    inputs = record_inputs({"first": model.first, "second": model.second}, lambda: model(x))
    found = measure_step(layers, inputs, lambda: model(x), step)
    # each row of the first gradient is x: every output falls by 0.01·25, of two outputs of norm 5
    assert found.layers["first"] == pytest.approx(0.25 * math.sqrt(2) / 5, rel=1e-5)
    # the second gradient is the first layer's output (3, 4), and so is the input that counts here
    assert found.layers["second"] == pytest.approx(0.25 / 7, rel=1e-5)
    # both together: (3 − 0.25)·(1 − 0.03) + (4 − 0.25)·(1 − 0.04) = 6.2675
    assert found.prediction == pytest.approx((7 - 6.2675) / 7, rel=1e-5)


def test_a_layer_is_not_blamed_for_what_its_inputs_do():
    model, x = TwoLayers(), torch.tensor([[3.0, 4.0]])
    inputs = record_inputs({"second": model.second}, lambda: model(x))

    def step() -> None:
        with torch.no_grad():
            model.first.weight.mul_(2)

    found = measure_step({"second": plain(model.second)}, inputs, lambda: model(x), step)
    assert found.layers == {"second": 0.0} and found.prediction == pytest.approx(1.0)


def test_relative_change():
    before = torch.tensor([3.0, 4.0])
    assert relative_change(before, before) == 0
    assert relative_change(before, torch.tensor([3.0, 9.0])) == pytest.approx(1.0)
    # a factor for both cancels
    assert relative_change(7 * before, 7 * torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert math.isnan(relative_change(torch.zeros(2), before))


def test_inputs_are_kept_of_the_first_call_and_hooks_are_gone():
    layer, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    first, second = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    found = record_inputs({"a": layer, "b": unused}, lambda: (layer(first), layer(second)))
    assert found.keys() == {"a"} and torch.equal(found["a"], first.flatten(0, 1))
    assert not layer._forward_pre_hooks and not unused._forward_pre_hooks
    (named,) = record_inputs({"a": layer}, lambda: layer(input=first)).values()
    assert torch.equal(named, found["a"])


def test_of_large_inputs_a_share_is_kept():
    rows = torch.arange(3 * 1000.0).view(3, 1000, 1).to(torch.bfloat16)
    kept = kept_inputs(nn.Linear(1, 1), rows)
    assert kept.shape == (MOST_ROWS, 1) and kept.dtype == torch.float32
    # evenly over all rows, the first and the last among them
    assert kept[0] == 0 and kept[-1] == rows[-1, -1] and (kept.diff(dim=0) >= 0).all()
    image = torch.arange(40.0).expand(2, 3, 40, 40)
    kept = kept_inputs(nn.Conv2d(3, 1, 1), image)
    assert kept.shape == (2, 3, MOST_SIDE, MOST_SIDE) and kept[0, 0, 0, 0] == (40 - MOST_SIDE) // 2
    small = torch.randn(1, 3, 4, 5)
    assert torch.equal(kept_inputs(nn.Conv2d(3, 1, 1), small), small)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_measured_as_its_adapter_computes_it(kind, layer):
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    root = nn.Sequential(make())
    adapters = AdapterSet("unet", root, TrainConfig.from_dict(KINDS[kind])).eval()
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    adapters.hook()
    x = torch.randn(shape)
    (measured,) = measured_layers(adapters).values()
    with torch.no_grad():
        expected, untrained = root[0](x), type(root[0]).forward(root[0], x)
        found = layer_output(measured, x)
    # float32, in another order of sums
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert relative_change(untrained, expected) > 0.01


def test_of_trained_weights_the_linear_layers_and_convolutions_are_measured():
    root = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(3, 4))
    layers = measured_layers(WeightSet("unet", root))
    assert layers.keys() == {"unet.0"}
    x = torch.randn(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer_output(layers["unet.0"], x), root[0](x))
        root[0].bias.add_(1.0)
        torch.testing.assert_close(layer_output(layers["unet.0"], x), root[0](x))


def test_a_step_that_half_precision_rounds_away_is_measured():
    root = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
    adapters = AdapterSet("unet", root, TrainConfig(lora_rank=4, lora_alpha=4.0)).eval()
    adapters.hook()
    (measured,) = measured_layers(adapters).values()
    x, adapter = torch.randn(32, 64), adapters.adapters["0"]

    def step() -> None:
        with torch.no_grad():
            adapter.up.add_(1e-4)

    with torch.no_grad():
        untrained = layer_output(measured, x)
        rounded = root(x.to(torch.bfloat16))
        found = measure_step({"0": measured}, {"0": x}, lambda: rounded, step).layers["0"]
        same = root(x.to(torch.bfloat16)) == rounded
        # each output gets 1e-4 times the sum of what the 4 ranks make of its input
        expected = relative_change(untrained, untrained + 1e-4 * (x @ adapter.down.T).sum(-1, keepdim=True))
    # that sum is 1e-4 of the outputs, of which float32 tells 1e-7
    assert found == pytest.approx(expected, rel=0.01) and 1e-5 < expected < 1e-3
    assert same.float().mean() > 0.9
