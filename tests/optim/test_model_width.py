"""Scaled steps grow with the width of the model, and nothing else does."""

import copy
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.module.DiffModule import DiffModule
from modules.module.LoKrModule import LoKrModule
from modules.trainer.trained import make_trained
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.ParameterInfo import get_parameter_info
from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.description import Description, describe, model_width
from scaled_optim.rules.registry import RULES
from scaled_optim.scaling import USUAL_WIDTH, width_gain

import torch
from torch import nn

import pytest
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).parents[2]
# adapters' steps double, the weights' own become four times as large
WIDER = 16 * USUAL_WIDTH
SHAPES = {
    "LORA_DOWN": (4, 24), "LORA_UP": (20, 4), "OFT": (6, 28), "DORA_SCALE": (20, 1), "HIDDEN": (20, 24),
    "OUTPUT": (8, 24), "VECTOR": (20,), "INPUT": (30, 12),
}  # fmt: skip
GROWTH = {"LORA_DOWN": 2, "LORA_UP": 2, "OFT": 2, "DORA_SCALE": 2, "HIDDEN": 4, "OUTPUT": 4, "VECTOR": 4, "INPUT": 1}


def parameters_of(width, roles=tuple(SHAPES)):
    torch.manual_seed(0)
    made = []
    for role in roles:
        parameter = nn.Parameter(torch.randn(SHAPES[role]))
        if role == "LORA_UP":
            parameter.data = torch.linalg.qr(parameter.data)[0]
        pair = {"LORA_DOWN": "LORA_UP", "LORA_UP": "LORA_DOWN"}.get(role)
        parameter.parameter_info = Description(role, role, pair, model_width=width)
        parameter.grad = torch.randn(SHAPES[role])
        made.append(parameter)
    return made


def moves(width, rule, rate=1e-3, **options):
    """What one step adds to each parameter, by role."""
    parameters = parameters_of(width)
    before = [p.detach().clone() for p in parameters]
    BatchedOptimizer(parameters, rule, rate, **options).step()
    return {role: p.detach() - old for role, p, old in zip(SHAPES, parameters, before, strict=True)}


@pytest.mark.parametrize("rule", [name for name in RULES if name != "PRODIGY_ADV"])
def test_the_steps_of_a_wider_model_are_larger_by_its_power(rule):
    always = RULES[rule].orthonormal_up
    # that of Stiefel-LoRA's other parameters, too
    usual = moves(USUAL_WIDTH, rule, scaled_optm=True)
    wider = moves(WIDER, rule, scaled_optm=True)
    for role, growth in GROWTH.items():
        # a step along a manifold is no straight line
        torch.testing.assert_close(
            wider[role], usual[role] * growth, rtol=5e-3, atol=2e-5 if always and role == "LORA_UP" else 1e-6, msg=role
        )


@pytest.mark.parametrize("options", [{}, {"scaled_optm": True, "scale_law": "variance"}])
def test_plain_steps_and_the_variance_law_know_no_width(options):
    usual, wider = moves(USUAL_WIDTH, "ADAMW_ADV", **options), moves(WIDER, "ADAMW_ADV", **options)
    assert all(torch.equal(usual[role], wider[role]) for role in SHAPES)


def test_at_the_usual_width_and_without_one_a_step_has_its_own_size():
    usual, unknown = (moves(width, "ADAMW_ADV", scaled_optm=True) for width in (USUAL_WIDTH, None))
    assert all(torch.equal(usual[role], unknown[role]) for role in SHAPES)


def test_decay_does_not_grow_with_the_width():
    def decay(width):
        decayed = moves(width, "ADAMW_ADV", scaled_optm=True, weight_decay=0.1)
        plain = moves(width, "ADAMW_ADV", scaled_optm=True)
        return decayed["HIDDEN"] - plain["HIDDEN"]

    assert decay(USUAL_WIDTH).abs().max() > 1e-2
    torch.testing.assert_close(decay(WIDER), decay(USUAL_WIDTH), rtol=1e-3, atol=1e-6)


def test_like_parameters_of_two_models_keep_the_steps_of_their_own():
    both = parameters_of(USUAL_WIDTH, ["HIDDEN"]) + parameters_of(WIDER, ["HIDDEN"])
    start = both[0].detach().clone()
    BatchedOptimizer(both, "ADAMW_ADV", 1e-3, scaled_optm=True).step()
    torch.testing.assert_close(both[1].detach() - start, 4 * (both[0].detach() - start), rtol=1e-4, atol=1e-6)


def test_a_first_convolution_is_a_matrix():
    found = []
    for width in (USUAL_WIDTH, WIDER):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(6, 3, 3, 3))
        weight.parameter_info = Description("INPUT", "first", model_width=width)
        weight.grad, before = torch.randn(weight.shape), weight.detach().clone()
        BatchedOptimizer([weight], "ADAMW_ADV", 1e-3, scaled_optm=True).step()
        found.append(weight.detach() - before)
    torch.testing.assert_close(found[1], 4 * found[0], rtol=1e-3, atol=1e-6)


def test_a_copy_of_an_optimizer_knows_the_width():
    parameters = parameters_of(WIDER, ["HIDDEN"])
    first = BatchedOptimizer(parameters, "ADAMW_ADV", 1e-3, scaled_optm=True)
    first.step()
    second = copy.deepcopy(first)
    (copied,) = second.param_groups[0]["params"]
    copied.grad = parameters[0].grad.clone()
    first.step(), second.step()
    assert torch.equal(copied, parameters[0])


def test_whole_factors_of_an_adapter_take_the_adapters_power():
    assert width_gain(WIDER, "HIDDEN", "coherent", adapter=True) == 2
    layer = nn.Linear(24, 20)
    for kind, expected in ((LoKrModule, True), (DiffModule, False)):
        config = TrainConfig(lokr_full_matrix=True, lokr_decompose_factor=4)
        adapter = kind.create(layer, "unet", "layer", config, 0)
        assert {get_parameter_info(p).adapter for p in adapter.parameters()} == {expected}


def test_prodigy_finds_the_rate_of_the_width_itself():
    usual, wider = (moves(width, "PRODIGY_ADV", 1.0, scaled_optm=True) for width in (USUAL_WIDTH, WIDER))
    assert all(torch.equal(usual[role], wider[role]) for role in SHAPES)


def test_the_gain_is_one_where_nothing_is_known():
    assert width_gain(None, "HIDDEN", "coherent") == width_gain(USUAL_WIDTH, "LORA_UP", "coherent") == 1
    assert width_gain(6 * USUAL_WIDTH, "HIDDEN", "variance") == width_gain(WIDER, "INPUT", "coherent") == 1
    assert width_gain(WIDER, "INPUT_MATRIX", "coherent") == 4


class TestWidth:
    def test_it_is_the_median_of_the_smaller_sides(self):
        model = nn.Sequential(
            nn.Embedding(1000, 16), nn.Linear(16, 64), nn.Linear(64, 256), nn.Conv1d(48, 64, 3), nn.LayerNorm(64)
        )
        assert model_width(model) == 48

    def test_a_model_without_layers_has_none(self):
        assert model_width(nn.LayerNorm(8)) is None
        assert {info.model_width for info in describe(nn.LayerNorm(8)).values()} == {None}

    def test_quantized_layers_and_parts_of_adapters(self):
        model = nn.ModuleDict({"layer": nn.ModuleDict({"base_layer": nn.Linear(32, 40), "lora_A": nn.Linear(32, 4)})})
        quantized = nn.Module()
        quantized.in_features, quantized.out_features = 128, 96
        model["other"] = quantized
        assert model_width(model) == (32 + 96) / 2

    def test_layers_of_adapters_and_of_wrappers_do_not_count(self):
        convolution = nn.ModuleDict({"lora_down": nn.Conv2d(9, 4, 1), "lora_mid": nn.Conv2d(4, 4, 3)})
        assert model_width(convolution) is None
        wrapper = nn.Linear(16, 16)
        wrapper.base_layer = nn.Linear(16, 16)
        assert model_width(nn.ModuleList([wrapper, nn.Linear(64, 64), nn.Linear(128, 128)])) == 64

    def test_each_component_has_its_own(self):
        unet = UNet2DConditionModel.from_pretrained("models/tiny_sd", subfolder="unet")
        whole = nn.ModuleDict({"unet": unet, "head": nn.Linear(2000, 1000)})
        found = describe(whole)
        assert found[unet.conv_in.weight].model_width == USUAL_WIDTH
        assert {info.model_width for info in describe(unet).values()} == {USUAL_WIDTH}

    def test_descriptions_carry_it(self):
        model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 8))
        assert {info.model_width for info in describe(model).values()} == {12}

    @pytest.mark.parametrize("method", ["LORA", "FINE_TUNE"])
    def test_what_is_trained_of_the_tiny_base_has_the_usual_one(self, method):
        changes = [f"training_method={method}", f"base_model_name={ROOT / 'models/tiny_sd'}"]
        config = load_train_config(ROOT / "training_presets/Tiny/#tiny LoRA.json", changes, warn=print)
        model = family_of(config).load(config, torch.device("cpu"))
        own = make_trained(model, config, print)["unet"]
        assert {get_parameter_info(p).model_width for p in own.parameters()} == {USUAL_WIDTH}
