"""Every optimizer that the factory offers, on a quadratic bowl large enough for 8-bit kernels."""

import gc
import json
import math
import re
import sys
from pathlib import Path

from modules.trainer.library_optimizers import LIBRARY, PACKAGES
from modules.trainer.optimizer_checks import check_lora_options, optimizer_problems
from modules.trainer.optimizers import (
    NO_OPTIMIZERS,
    OPTIMIZERS,
    create_optimizer,
    load_optimizer_state,
    optimizer_notes,
    option_problems,
)
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import ParameterInfo, set_parameter_info
from modules.util.UserError import UserError

import torch

import pytest

ROOT = Path(__file__).resolve().parents[2]
# ours that use a library
OWN_MODULES = ("modules.trainer.eight_bit", "modules.trainer.muon")
# those that find their own size of steps take 1; Adagrad's shrink from the start, Yogi's grow from a large divisor
RATES = {
    Optimizer.PRODIGY: 1.0,
    Optimizer.ADAGRAD: 0.5,
    Optimizer.SGD: 0.5,
    Optimizer.SCHEDULE_FREE_SGD: 5.0,
    Optimizer.PRODIGY_ADV: 1.0,
    Optimizer.PRODIGY_PLUS_SCHEDULE_FREE: 1.0,
    Optimizer.DADAPT_ADA_GRAD: 1.0,
    Optimizer.DADAPT_ADAM: 1.0,
    Optimizer.DADAPT_ADAN: 1.0,
    Optimizer.DADAPT_LION: 1.0,
    Optimizer.DADAPT_SGD: 1.0,
    Optimizer.LARS: 1.0,
    Optimizer.LARS_8BIT: 1.0,
    Optimizer.MUON: 0.5,
}
# these two's first guess of 1e-6 takes more steps to grow; CAME keeps tensors as small as these in float32
OPTIONS = {
    Optimizer.PRODIGY_PLUS_SCHEDULE_FREE: {"d0": 0.01},
    Optimizer.DADAPT_ADA_GRAD: {"d0": 0.01},
    Optimizer.CAME_8BIT: {"min_8bit_size": 4096},
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
    for step in range(steps):
        # as in a run, whose steps are seeded: Prodigy Plus rounds bfloat16 by torch's own random numbers
        torch.manual_seed(step)
        optimizer.zero_grad()
        bowl(parameter).backward()
        optimizer.step()
    return bowl(parameter).item()


def start(dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).to(dtype))


def is_mapped(path: Path) -> bool:
    """Whether memory of this process stands on a file, where the system tells."""
    gc.collect()
    maps = Path("/proc/self/maps")
    return maps.exists() and str(path) in maps.read_text(encoding="utf-8")


def test_there_is_every_optimizer_of_the_enum():
    assert set(OPTIMIZERS) == set(Optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_lowers_a_loss(name):
    parameter = start()
    before = bowl(parameter).item()
    optimizer = make(name, [parameter], RATES.get(name, 0.05), **OPTIONS.get(name, {}))
    assert descend(optimizer, parameter) < 0.5 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_survives_a_backup_bit_by_bit(name, tmp_path):
    parameter = start(torch.bfloat16)
    optimizer = make(name, [parameter], RATES.get(name, 0.05), **OPTIONS.get(name, {}))
    descend(optimizer, parameter, 5)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = torch.nn.Parameter(parameter.detach().clone())
    other = make(name, [twin], RATES.get(name, 0.05), **OPTIONS.get(name, {}))
    load_optimizer_state(other, torch.load(tmp_path / "state.pt", weights_only=True, mmap=True))
    assert not is_mapped(tmp_path / "state.pt"), "copied, so that the file can be removed"
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


EIGHT_BIT = {
    Optimizer.LAMB_8BIT: Optimizer.LAMB,
    Optimizer.LARS_8BIT: Optimizer.LARS,
    Optimizer.CAME_8BIT: Optimizer.CAME,
}


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_our_8_bit_state_is_small_and_steps_stay_near_those_of_32_bits(name):
    short, whole = start(), start()
    optimizer = make(name, [short], 0.05, **OPTIONS.get(name, {}))
    descend(optimizer, short, 10)
    descend(make(EIGHT_BIT[name], [whole], 0.05), whole, 10)
    moved = (whole - start()).norm()
    # codes have 8 bits with a scale for each block, and CAME's divide its steps, too
    assert 0 < (short - whole).norm() < 0.05 * moved
    sizes = {key: value.element_size() for key, value in optimizer.state[short].items()
             if isinstance(value, torch.Tensor) and value.numel() == short.numel()}  # fmt: skip
    assert sizes and set(sizes.values()) == {1}


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_small_tensors_keep_32_bits(name):
    short, whole = (torch.nn.Parameter(torch.ones(8, 8)) for _ in range(2))
    descend(make(name, [short]), short, 3)
    descend(make(EIGHT_BIT[name], [whole]), whole, 3)
    assert torch.equal(short, whole)


def test_quantization_blocks_are_those_of_bitsandbytes():
    with pytest.raises(UserError, match="quant_block_size: found 100, expected one of 64, 128"):
        make("CAME_8BIT", quant_block_size=100)


def test_muon_leaves_what_is_no_hidden_matrix_to_adam():
    matrix, vector, down = (torch.nn.Parameter(torch.ones(size)) for size in ((4, 6), (5,), (3, 6)))
    set_parameter_info(down, ParameterInfo(ParameterRole.LORA_DOWN, "unet", "layer", "unet.layer.down"))
    optimizer = make("MUON", [matrix, vector, down], 0.1, muon_adam_lr=0.01)
    hidden, others = optimizer.param_groups
    assert hidden["params"] == [matrix] and hidden["use_muon"] and hidden["momentum"] == 0.95
    assert others["params"] == [vector, down] and not others["use_muon"]
    # a run writes the rate of both by their common name; the share of AdamW's is taken in the step
    for group in optimizer.param_groups:
        assert group["name"] == "unet"
        group["lr"] = 0.2
    vector.grad = torch.ones(5)
    optimizer.step()
    # the first step of Adam is the rate itself: 0.2 of a schedule whose start is 0.1, so twice 0.01
    torch.testing.assert_close(vector.detach(), torch.full((5,), 1 - 0.02), rtol=1e-6, atol=0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2]


def test_muon_takes_layers_and_rates_of_text_encoders():
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(4, 6))], "lr": 0.1, "name": name} for name in ("unet", "text_encoder")
    ]
    options = {"optimizer": "MUON", "muon_hidden_layers": "attn", "muon_adam_lr": 0.05, "muon_te1_adam_lr": 0.02}
    optimizer = create_optimizer(TrainOptimizerConfig.from_dict(options), groups)
    assert not any(group["use_muon"] for group in optimizer.param_groups)
    assert [group["lr_share"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.2])


def test_options_of_libraries_have_their_own_names():
    group = make("ADABELIEF", amsgrad=True, decoupled_decay=False, rectify=False).param_groups[0]
    assert group["ams_bound"] and not group["weight_decouple"] and not group["rectify"]
    assert make("AIDA", adanorm=True, r=0.9).param_groups[0]["adanorm_r"] == 0.9
    assert make("TIGER", beta1=0.5).param_groups[0]["beta"] == 0.5
    assert make("CAME", eps=1e-20, beta3=0.99).param_groups[0]["betas"] == (0.9, 0.999, 0.99)
    assert make("DADAPT_ADAN", beta3=0.5).param_groups[0]["betas"] == (0.98, 0.92, 0.5)
    assert make("PRODIGY_PLUS_SCHEDULE_FREE", beta3=0.5).param_groups[0]["beta3"] == 0.5
    assert make("AdEMAMix", alpha=2.0, optim_bits=8).param_groups[0]["alpha"] == 2.0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("AdEMAMix", {"optim_bits": 16}, "optim_bits: found 16, expected 8 or 32"),
        ("SGD_8BIT", {"momentum": 0.0}, "SGD without momentum is not supported"),
        ("LARS", {"momentum": 0.0}, "LARS without momentum is not supported"),
        ("LION", {"use_triton": True}, "use_triton needs Triton and a GPU"),
    ],
)
def test_what_a_library_can_not_do_is_told_before_a_run(monkeypatch, name, options, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"optimizer: {name} refuses its options: {words}"):
        make(name, **options)


# options with the values that they have in OneTrainer's files, where nothing is lost without them
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ADAMW_8BIT", {"percentile_clipping": 100, "block_wise": True, "optim_bits": 8}),
        ("RMSPROP_8BIT", {"percentile_clipping": 100, "block_wise": True, "momentum": 0.0, "centered": False}),
        ("LAMB", {"bias_correction": True, "adam_w_mode": True, "optim_bits": 32, "min_8bit_size": 4096}),
        ("LAMB_8BIT", {"bias_correction": True, "adam_w_mode": True, "block_wise": False}),
        ("LARS", {"optim_bits": 32, "min_8bit_size": 4096, "momentum": 0.5}),
        ("YOGI", {"r": 0.95, "adanorm": False}),
        ("ADAGRAD", {"percentile_clipping": 100, "block_wise": True, "optim_bits": 32, "min_8bit_size": 4096}),
        ("PRODIGY_ADV", {"use_AdEMAMix": False, "beta3_ema": 0.9999, "alpha": 5.0}),
        ("MUON_ADV", {"Simplified_AdEMAMix": False, "alpha_grad": 100.0}),
    ],
)
def test_options_without_effect_may_stand_at_the_values_of_onetrainers_files(name, options):
    assert option_problems(TrainOptimizerConfig.from_dict({"optimizer": name, **options})) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ADAMW_8BIT", {"percentile_clipping": 50}),
        ("RMSPROP_8BIT", {"momentum": 0.5}),
        ("SGD_8BIT", {"nesterov": True}),
        ("SGD_8BIT", {"dampening": 0.5}),
        ("LAMB", {"optim_bits": 8}),
        ("LAMB", {"amsgrad": True}),
        ("LAMB", {"bias_correction": False}),
        ("LAMB_8BIT", {"adam_w_mode": False}),
        ("YOGI", {"adanorm": True}),
        ("CAME", {"stochastic_rounding": True}),
        ("PRODIGY", {"fsdp_in_use": True}),
        ("ADAMW", {"differentiable": True}),
    ],
)
def test_what_a_library_would_ignore_is_refused_with_the_reason(name, options):
    (problem,) = option_problems(TrainOptimizerConfig.from_dict({"optimizer": name, **options}))
    (option,) = options
    assert problem.path == f"optimizer.{option}" and problem.remedies
    assert NO_OPTIMIZERS.get(option, "it is an option of") in problem.text


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"training_method": "LORA"}, False),
        ({"training_method": "LORA", "lora_weight_dtype": "BFLOAT_16"}, True),
        ({"training_method": "FINE_TUNE"}, False),
        ({"training_method": "FINE_TUNE", "unet": {"weight_dtype": "BFLOAT_16"}}, True),
        ({"training_method": "FINE_TUNE", "vae": {"weight_dtype": "BFLOAT_16"}}, False),
    ],
)
def test_stochastic_rounding_is_refused_only_where_it_would_round(options, refused):
    # OneTrainer's Adafactor has it, and its presets switch it on
    config = TrainConfig.from_dict({**options, "optimizer": {"optimizer": "ADAFACTOR", "stochastic_rounding": True}})
    found = optimizer_problems(config, pytest.fail, {"unet": 1e-4})
    assert [problem.path for problem in found] == ["optimizer.stochastic_rounding"] * refused
    weights = torch.bfloat16 if refused else torch.float32
    groups = [{"params": [torch.nn.Parameter(torch.ones(4, 4, dtype=weights))], "lr": 1e-4, "name": "unet"}]
    if refused:
        with pytest.raises(UserError, match="stochastic_rounding"):
            create_optimizer(config.optimizer, groups)
    else:
        create_optimizer(config.optimizer, groups)


@pytest.mark.parametrize("name", ["LAMB", "LAMB_8BIT", "LARS", "LARS_8BIT"])
def test_weights_that_start_at_zero_would_never_move_below_a_bound(name):
    zeros = torch.nn.Parameter(torch.zeros(64, 128))
    descend(make(name, [zeros], 1.0), zeros, 3)
    assert not zeros.any()
    descend(make(name, [zeros], 1.0, max_unorm=0.0), zeros, 3)
    assert zeros.any()
    config = TrainConfig.from_dict({"training_method": "LORA", "optimizer": {"optimizer": name}})
    (problem,) = optimizer_problems(config, pytest.fail, {"unet": 1e-4})
    assert problem.path == "optimizer.max_unorm" and problem.remedies[0].values == (("optimizer.max_unorm", 0.0),)
    for allowed in ({"training_method": "FINE_TUNE"}, {"lora_model_name": "a.safetensors"}):
        other = TrainConfig.from_dict({"training_method": "LORA", "optimizer": {"optimizer": name}, **allowed})
        assert optimizer_problems(other, pytest.fail, {"unet": 1e-4}) == []


def test_every_option_is_one_of_some_optimizer_or_has_a_reason():
    taken = {option for entry in OPTIMIZERS.values() for option in entry.defaults}
    assert taken | set(NO_OPTIMIZERS) == set(TrainOptimizerConfig.model_fields) - {"optimizer"}
    assert not taken & set(NO_OPTIMIZERS)


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


def test_values_that_the_library_refuses_are_one_line():
    with pytest.raises(UserError, match="optimizer: ADAMW refuses its options") as error:
        make("ADAMW", foreach=True, fused=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, entry in LIBRARY.items() if entry.packages != ("torch",)])
def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch, name):
    packages = LIBRARY[name].packages
    for module, package in PACKAGES.items():
        if package not in packages or package == "torch":
            continue
        with monkeypatch.context() as without:
            for loaded in [key for key in sys.modules if key.split(".")[0] == module or key in OWN_MODULES]:
                without.delitem(sys.modules, loaded)
            # None in place of a module makes Python say that there is none
            without.setitem(sys.modules, module, None)
            words = " and ".join(packages)
            with pytest.raises(UserError, match=rf"{name} needs {words}, which can't be loaded here: .*pip install"):
                LIBRARY[name].load_or_tell(name)


def test_the_packages_are_those_of_the_requirements():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for package in PACKAGES.values():
        assert re.search(rf"^{package}==", text, re.MULTILINE), package
    assert {package for entry in LIBRARY.values() for package in entry.packages} == set(PACKAGES.values())


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


def test_muon_is_torchs():
    own, peer = start(), start()
    descend(make("MUON", [own], 0.5), own, 30)
    optimizer = torch.optim.Muon([peer], lr=0.5, weight_decay=0.0, momentum=0.95, adjust_lr_fn="original")
    descend(optimizer, peer, 30)
    # float32 rounding; both orthogonalize in bfloat16 by the same operations
    torch.testing.assert_close(own, peer, rtol=0, atol=1e-5)


def library_row(name: Optimizer) -> str:
    """The line of an optimizer in the docs' table."""
    entry = LIBRARY[name]
    options = ", ".join(f"`{key}` {shown(value)}" for key, value in entry.defaults.items())
    return f"| `{name}` | {', '.join(entry.packages)} | {options} |"


def shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}"


def test_the_docs_name_every_option_of_every_library_optimizer():
    text = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for name in LIBRARY:
        assert library_row(name) in text, library_row(name)


@pytest.mark.parametrize(
    ("name", "before", "now", "key"),
    [
        ("ADAMW", {"weight_decay": 0.01}, {"weight_decay": 0.5}, "weight_decay"),
        ("MUON", {"muon_adam_lr": 3e-4}, {"muon_adam_lr": 3e-3}, "lr_share"),
        ("PRODIGY", {"d_coef": 1.0}, {"d_coef": 0.5}, "d_coef"),
    ],
)
def test_a_loaded_state_leaves_options_as_they_are_now(name, before, now, key):
    def made(changes):
        own = [torch.nn.Parameter(torch.randn(8, 8)), torch.nn.Parameter(torch.randn(8))]
        config = TrainOptimizerConfig.from_dict({"optimizer": name, **changes})
        optimizer = create_optimizer(config, [{"params": own, "lr": RATES.get(Optimizer[name], 1e-2), "name": "unet"}])
        for parameter in own:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return optimizer

    first, second = made(before), made(now)
    wanted = [group[key] for group in second.param_groups]
    load_optimizer_state(second, first.state_dict())
    assert [group[key] for group in second.param_groups] == wanted != [group[key] for group in first.param_groups]


def test_a_backup_of_another_optimizer_of_a_library_is_refused(mini_run):
    mini_run.train(stop_after=2, optimizer={"optimizer": "ADAMW"})
    with pytest.raises(UserError, match="holds what ADAMW remembers, but the config's optimizer.optimizer is LION"):
        mini_run.train(optimizer={"optimizer": "LION"}, continue_last_backup=True)
