"""Every optimizer that the factory offers, on a quadratic bowl large enough for 8-bit kernels."""

import math
import sys

from modules.trainer.optimizer_checks import check_lora_options
from modules.trainer.optimizers import (
    OPTIMIZERS,
    create_optimizer,
    load_optimizer_state,
    optimizer_notes,
)
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import ParameterInfo, set_parameter_info
from modules.util.UserError import UserError

import torch

import pytest

# Prodigy finds its own size of steps; Adagrad's shrink from the start
RATES = {
    Optimizer.PRODIGY: 1.0,
    Optimizer.ADAGRAD: 0.5,
    Optimizer.SGD: 0.5,
    Optimizer.SCHEDULE_FREE_SGD: 5.0,
    Optimizer.PRODIGY_ADV: 1.0,
}
STEPS = 60


def make(name: str, parameters: list | None = None, rate: float = 0.05, **options) -> torch.optim.Optimizer:
    parameters = parameters or [torch.nn.Parameter(torch.ones(4))]
    config = TrainOptimizerConfig.from_dict({"optimizer": name, **options})
    return create_optimizer(config, [{"params": parameters, "lr": rate, "name": "unet"}])


def bowl(parameter: torch.Tensor) -> torch.Tensor:
    """Mean distance to 0.5, squared; its curvature differs by a factor of 10 among the rows."""
    curvature = torch.linspace(1, 10, len(parameter))[:, None]
    return (curvature * (parameter - 0.5) ** 2).mean() * 100


def descend(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: int = STEPS) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        bowl(parameter).backward()
        optimizer.step()
    return bowl(parameter).item()


def start(dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).to(dtype))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_lowers_a_loss(name):
    parameter = start()
    before = bowl(parameter).item()
    optimizer = make(name, [parameter], RATES.get(name, 0.05))
    assert descend(optimizer, parameter) < 0.5 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_survives_a_backup_bit_by_bit(name, tmp_path):
    parameter = start(torch.bfloat16)
    optimizer = make(name, [parameter], RATES.get(name, 0.05))
    descend(optimizer, parameter, 5)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = torch.nn.Parameter(parameter.detach().clone())
    other = make(name, [twin], RATES.get(name, 0.05))
    load_optimizer_state(other, torch.load(tmp_path / "state.pt", weights_only=True))
    descend(optimizer, parameter, 5)
    descend(other, twin, 5)
    assert torch.equal(parameter, twin)


def test_8_bit_state_is_really_small():
    parameter = start()
    optimizer = make("ADAMW_8BIT", [parameter])
    descend(optimizer, parameter, 2)
    state = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    large = [value for value in state if value.numel() == parameter.numel()]
    assert len(large) == 2 and all(value.element_size() == 1 for value in large)


def test_options_reach_the_optimizer():
    group = make("ADAMW", beta1=0.5, weight_decay=0.25, amsgrad=True).param_groups[0]
    assert group["betas"] == (0.5, 0.999) and group["weight_decay"] == 0.25 and group["amsgrad"]
    assert group["lr"] == 0.05 and group["name"] == "unet"
    assert make("PRODIGY", d_coef=2.0).param_groups[0]["d_coef"] == 2.0
    assert make("SGD", momentum=0.9, nesterov=True).param_groups[0]["nesterov"]


@pytest.mark.parametrize(("given", "kernels"), [(None, "auto"), (True, "auto"), (False, "never")])
def test_fused_kernels_can_be_switched_off(given, kernels):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": 0.1, "name": "unet"}]
    config = TrainOptimizerConfig(optimizer=Optimizer.ADAMW_ADV, fused_kernels=given)
    assert create_optimizer(config, groups).kernels == kernels


def test_null_means_the_optimizers_own_default():
    group = make("ADAMW", beta1=None, eps=None).param_groups[0]
    assert group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8
    assert make("PRODIGY").param_groups[0]["growth_rate"] == math.inf


def test_an_option_of_another_optimizer_is_named_with_its_owners():
    with pytest.raises(UserError, match=r"optimizer\.momentum: ADAMW has no such option; it is an option of SGD"):
        make("ADAMW", momentum=0.9)
    with pytest.raises(
        UserError, match=r"optimizer\.fisher_wd: ADAMW has no such option; it is an option of ADAMW_ADV"
    ):
        make("ADAMW", fisher_wd=True)


def test_an_option_that_is_switched_off_may_stand_anywhere():
    make("SGD", amsgrad=False, d_coef=None, fisher_wd=False)


@pytest.mark.parametrize("name", [name for name in Optimizer if name not in OPTIMIZERS])
def test_the_rest_is_refused_by_name(name):
    with pytest.raises(UserError, match=rf"optimizer\.optimizer: {name} is not supported yet; expected one of .*ADAMW"):
        make(name)


def test_values_that_the_library_refuses_are_one_line():
    with pytest.raises(UserError, match="optimizer: ADAMW refuses its options") as error:
        make("ADAMW", foreach=True, fused=True)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named(monkeypatch):
    # None in place of a module makes Python say that there is none
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"ADAM_8BIT needs bitsandbytes, which can't be loaded here"):
        make("ADAM_8BIT")


def test_prodigy_takes_one_learning_rate():
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate, "name": name}
        for name, rate in (("unet", 1.0), ("text_encoder", 0.5))
    ]
    with pytest.raises(UserError, match=r"PRODIGY finds one learning rate .*unet 1, text_encoder 0\.5"):
        create_optimizer(TrainOptimizerConfig.from_dict({"optimizer": "PRODIGY"}), groups)
    groups[1]["lr"] = 1.0
    create_optimizer(TrainOptimizerConfig.from_dict({"optimizer": "PRODIGY"}), groups)


def test_text_encoders_have_a_rate_of_their_own_for_the_adam_inside_muon():
    names = ("unet", "text_encoder", "text_encoder_2")
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1, "name": name} for name in names]
    rates = {"muon_adam_lr": 0.01, "muon_te1_adam_lr": 0.02}
    optimizer = create_optimizer(TrainOptimizerConfig.from_dict({"optimizer": "MUON_ADV", **rates}), groups)
    assert [group["muon_adam_lr"] for group in optimizer.param_groups] == [0.01, 0.02, 0.01]
    with pytest.raises(UserError, match=r"^optimizer\.muon_te1_adam_lr: LION_ADV has no such option"):
        create_optimizer(TrainOptimizerConfig.from_dict({"optimizer": "LION_ADV", "muon_te1_adam_lr": 0.1}), groups)


def lora_config(**options) -> TrainConfig:
    options = {"lora_rank": 4, "lora_alpha": 4.0, "lora_init": "ORTHONORMAL", **options}
    return TrainConfig.from_dict({"training_method": "LORA", "optimizer": {"optimizer": "STIEFEL_LORA"}, **options})


def test_stiefel_asks_for_orthonormal_start_values_and_says_when_alpha_is_not_the_rank():
    told = []
    check_lora_options(lora_config(), told.append)
    assert not told
    for changes, words in (
        ({"lora_init": "KAIMING"}, "lora_init: found KAIMING.*ORTHONORMAL"),
        ({"lora_init_scale": 0.5}, "lora_init_scale: found 0.5"),
    ):
        with pytest.raises(UserError, match=words):
            check_lora_options(lora_config(**changes), told.append)
        check_lora_options(lora_config(**changes, optimizer={"optimizer": "LORA_RITE"}), told.append)
    # a file brings its own factors, which are made orthonormal
    check_lora_options(lora_config(lora_init="KAIMING", lora_model_name="a.safetensors"), told.append)
    assert not told
    check_lora_options(lora_config(lora_alpha=1.0), told.append)
    assert len(told) == 1 and "lora_alpha: found 1 with lora_rank 4" in told[0]


def factors(up: torch.Tensor) -> list[torch.nn.Parameter]:
    down = torch.nn.Parameter(torch.randn(4, 10, generator=torch.Generator().manual_seed(1)))
    pair = [down, torch.nn.Parameter(up)]
    for parameter, role, own, other in zip(pair, ParameterRole, ("down", "up"), ("up", "down"), strict=False):
        set_parameter_info(parameter, ParameterInfo(role, "unet", "layer", own, other))
    assert pair[1].parameter_info.role == ParameterRole.LORA_UP
    return pair


def test_stiefel_continues_any_trained_adapter_and_refuses_an_untrained_one():
    up = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    down, up = pair = factors(up)
    before = (up @ down).detach()
    assert optimizer_notes(make("STIEFEL_LORA", pair)) == []
    # float32 rounding
    torch.testing.assert_close((up @ down).detach(), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((up.T @ up).detach(), torch.eye(4), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="^lora_init: the columns of up are not orthonormal"):
        optimizer_notes(make("STIEFEL_LORA", factors(torch.zeros(12, 4))))
    (note,) = optimizer_notes(make("LORA_RITE", [*factors(torch.zeros(12, 4)), torch.nn.Parameter(torch.ones(3))]))
    assert "LORA_RITE" in note and "1 VECTOR (parameter 2)" in note
