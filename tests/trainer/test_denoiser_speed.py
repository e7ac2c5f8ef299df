"""Compiled blocks with adapters on them: no graph breaks, the same loss and gradients; else a line, and they stay."""

from types import SimpleNamespace

from modules.module.AdapterSet import AdapterSet
from modules.trainer import denoiser_speed
from modules.trainer.denoiser_speed import speed_up
from modules.util.config.TrainConfig import TrainConfig
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

import pytest
from diffusers import Flux2Transformer2DModel, UNet2DConditionModel

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """Graphs are found by torch's own tracer, and run as they are: inductor would take a minute for each."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setitem(denoiser_speed.COMPILING, "backend", "eager")
    monkeypatch.setattr(denoiser_speed.shutil, "which", lambda name: name == "g++")
    yield
    torch._dynamo.reset()


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",),
        mid_block_type=None, attention_head_dim=2,
    ).requires_grad_(False)  # fmt: skip


def model_of(denoiser: torch.nn.Module, component: str = "unet", device: torch.device = CPU) -> SimpleNamespace:
    return SimpleNamespace(denoiser=denoiser, trainable_components=(component,), device=device)


def loss_and_gradients(denoiser: UNet2DConditionModel, adapters: AdapterSet) -> list[Tensor]:
    """Of the same input; adapters start off zero, so that they change something."""
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    for parameter in adapters.parameters():
        parameter.grad = None
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1)
    loss = denoiser(x, torch.tensor([3, 7]), text).sample.square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in adapters.parameters())]


# a part of a block is enough: tracing takes a second for each layer
@pytest.mark.parametrize(("decompose", "checkpointing"), [(False, True), (True, False)])
def test_blocks_with_adapters_are_one_graph_each(decompose, checkpointing):
    denoiser, told = unet(), []
    config = TrainConfig.from_dict(
        {"training_method": "LORA", "lora_rank": 2, "compile": True, "lora_decompose": decompose}
    )
    adapters = AdapterSet("unet", denoiser, config, LayerFilter.exactly(_block_layers(denoiser)))
    adapters.train()
    adapters.hook()
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
        denoiser.train()
    expected = loss_and_gradients(denoiser, adapters)
    speed_up(model_of(denoiser), config, told.append)
    found = loss_and_gradients(denoiser, adapters)
    assert not told and not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1 and counters["frames"]["ok"] == counters["frames"]["total"]
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        # the same products in float32, whose sums may have another order
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _block_layers(denoiser: torch.nn.Module) -> list[str]:
    return [
        name for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear) and "attn1.to_" in name
    ]


@pytest.mark.parametrize(
    ("options", "device", "denoiser", "words"),
    [
        ({"unet": {"offload_fraction": 0.5}, "temp_device": "meta"}, CPU, unet, "offload_fraction"),
        ({}, CPU, lambda: torch.nn.Linear(1, 1), "no repeated blocks of Linear"),
        ({}, torch.device("cuda"), unet, "triton"),
    ],
)
def test_where_it_can_not_be_a_line_says_so_and_nothing_is_compiled(monkeypatch, options, device, denoiser, words):
    monkeypatch.setattr(denoiser_speed, "find_spec", lambda name: None)
    model, told = model_of(denoiser(), device=device), []
    speed_up(model, TrainConfig.from_dict({"compile": True, **options}), told.append)
    (line,) = told
    assert words in line and "uncompiled" in line
    assert all(module._compiled_call_impl is None for module in model.denoiser.modules())


def test_without_a_compiler_for_the_cpu_a_run_says_so(monkeypatch):
    monkeypatch.setattr(denoiser_speed.shutil, "which", lambda name: None)
    told = []
    speed_up(model_of(unet()), TrainConfig.from_dict({"compile": True}), told.append)
    assert len(told) == 1 and "C++ compiler" in told[0]


def test_nothing_changes_without_the_option():
    model, told = model_of(unet()), []
    speed_up(model, TrainConfig.from_dict({}), told.append)
    assert not told and all(module._compiled_call_impl is None for module in model.denoiser.modules())


def test_xformers_goes_to_the_layers_of_a_unet_and_to_the_backend_of_a_transformer(monkeypatch):
    calls = []
    for kind, method in (
        (UNet2DConditionModel, "enable_xformers_memory_efficient_attention"),
        (Flux2Transformer2DModel, "set_attention_backend"),
    ):
        monkeypatch.setattr(kind, method, lambda self, *backend, kind=kind: calls.append((kind, *backend)))
    flux = Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=8, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2),
    )  # fmt: skip
    config = TrainConfig.from_dict({"attention_mechanism": "XFORMERS"})
    for denoiser in (unet(), flux):
        speed_up(model_of(denoiser), config, calls.append)
    assert calls == [(UNet2DConditionModel,), (Flux2Transformer2DModel, "xformers")]


def test_a_library_that_fails_is_told_in_words():
    denoiser = unet()
    denoiser.enable_xformers_memory_efficient_attention = lambda: (_ for _ in ()).throw(ModuleNotFoundError("xformers"))
    with pytest.raises(UserError, match="attention_mechanism: XFORMERS can't be used here: xformers"):
        speed_up(model_of(denoiser), TrainConfig.from_dict({"attention_mechanism": "XFORMERS"}), print)
