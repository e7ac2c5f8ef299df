"""torch's fused kernel is the default of Adam and AdamW, does the same, and gives way to other wishes."""

from modules.trainer.optimizers import create_optimizer
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig

import torch

import pytest


def make(name: str, parameters: list, **options) -> torch.optim.Optimizer:
    config = TrainOptimizerConfig.from_dict({"optimizer": name, **options})
    return create_optimizer(config, [{"params": parameters, "lr": 0.01, "name": "unet"}])


def trained(name: str, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(33, 7, generator=generator))
    optimizer = make(name, [parameter], weight_decay=0.1, **options)
    for _ in range(20):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", ["ADAM", "ADAMW"])
def test_fused_does_the_same(name):
    # the order of roundings differs, 20 steps of float32
    torch.testing.assert_close(trained(name), trained(name, fused=False), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ADAM", "ADAMW"])
@pytest.mark.parametrize(
    "options, fused",
    [({}, True), ({"fused": False}, False), ({"foreach": True}, None)],
)
def test_other_wishes_are_kept(name, options, fused):
    group = make(name, [torch.nn.Parameter(torch.ones(3))], **options).param_groups[0]
    assert group["fused"] is fused and group["foreach"] is options.get("foreach")


def test_scaler_skips_overflows_and_keeps_other_steps():
    parameters = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    optimizers = [make("ADAMW", [parameters[0]]), make("ADAMW", [parameters[1]])]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for gradient in (0.5, float("inf"), 0.25):
        # the scaler learns its device and size with the first loss
        scaler.scale((parameters[0] * gradient).sum()).backward()
        if gradient < 1:
            parameters[1].grad = torch.full((5,), gradient)
            optimizers[1].step()
        scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[0].zero_grad()
    assert scaler.get_scale() == 512.0
    torch.testing.assert_close(parameters[0], parameters[1])
