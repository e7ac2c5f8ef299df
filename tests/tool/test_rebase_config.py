"""Another alpha, the same run: for every optimizer that the trainer offers, and for presets."""

import json

from modules.module.AdapterSet import AdapterSet
from modules.tool.rebase_config import FIXED, LAWS, rebase_config, rebase_preset
from modules.trainer.optimizers import OPTIMIZERS, create_optimizer
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import ParameterInfo, set_parameter_info
from modules.util.UserError import UserError

import torch
from torch import nn

import pytest

OUT, IN, RANK, STEPS = 12, 10, 4, 4
RATES = {
    **dict.fromkeys((name for name, entry in OPTIMIZERS.items() if "d0" in entry.defaults), 1.0),
    Optimizer.SGD: 0.05, Optimizer.SCHEDULE_FREE_SGD: 0.05}  # fmt: skip
# bitsandbytes keeps tensors below 4096 numbers in float32, and rounds nothing here
FEATURES = {
    "decay": {"weight_decay": 0.1},
    "large eps": {"eps": 0.01},
    "scaled": {"scaled_optm": True, "weight_decay": 0.1},
    "decay by width": {"scaled_wd": True, "weight_decay": 0.1},
    "geometric decay": {"geometric_wd": True, "weight_decay": 0.1},
    "centered decay": {"centered_wd": 0.1},
    "cautious decay": {"cautious_wd": True, "weight_decay": 0.1},
    "kourkoutas": {"kourkoutas_beta": True, "tiny_spike": 0.1},
    "l1": {"l1_adaptive": True},
    "orthograd": {"orthogonal_gradient": "flattened"},
    "atan2": {"use_atan2": True},
    "normuon": {"normuon_variant": True},
    "slow moment": {"use_AdEMAMix": True},
    "decay apart": {"decoupled_decay": True, "weight_decay": 0.1},
    "decay in the gradient": {"decoupled_decay": False, "weight_decay": 0.1},
    "fixed decay": {"decoupled_decay": True, "fixed_decay": True, "weight_decay": 0.01},
    "decouple": {"decouple": True, "weight_decay": 0.1},
    "bound": {"max_unorm": 0.01},
}


def config_of(name: Optimizer, **options) -> TrainConfig:
    # Prodigy's usual first guess takes many steps to grow
    first = {"d0": 0.01} if "d0" in OPTIMIZERS[name].defaults else {}
    optimizer = {"optimizer": str(name), **first, **options}
    return TrainConfig.from_dict(
        {"training_method": "LORA", "peft_type": "LORA", "lora_rank": RANK, "lora_alpha": 2.0, "optimizer": optimizer,
         "learning_rate": RATES.get(name, 0.03), "clip_grad_norm": 0.4}
    )  # fmt: skip


def train(config: TrainConfig, factors: int = 2) -> list[torch.Tensor]:
    """ΔW after each step of a LoRA, or of a LoHa with 4 factors, with the config's optimizer and clipping."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, IN, generator=generator, dtype=torch.float64)
    y = torch.randn(32, OUT, generator=generator, dtype=torch.float64)
    scale = config.lora_alpha / RANK
    parameters = []
    for index in range(factors):
        rows, cols = (RANK, IN) if index % 2 == 0 else (OUT, RANK)
        start = torch.randn(rows, cols, generator=generator, dtype=torch.float64) * config.lora_init_scale
        # the optimizers of libraries keep some state in float32 for float64 weights, so all compute in float32
        parameter = nn.Parameter(start.float())
        role = ParameterRole.LORA_DOWN if index % 2 == 0 else ParameterRole.LORA_UP
        pair = f"unet.{index ^ 1}" if factors == 2 else None
        set_parameter_info(parameter, ParameterInfo(role, "unet", f"layer{index // 2}", f"unet.{index}", pair))
        parameters.append(parameter)
    groups = [{"params": parameters, "lr": config.learning_rate, "name": "unet"}]
    optimizer = create_optimizer(config.optimizer, groups)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        delta = scale * parameters[1].double() @ parameters[0].double()
        if factors == 4:
            delta = delta * (parameters[3].double() @ parameters[2].double())
        (x @ delta.t() - y).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm)
        optimizer.step()
        found.append(delta.detach().clone())
    return found[1:]


def cases() -> list:
    found = []
    for name, entry in OPTIMIZERS.items():
        if name not in LAWS:
            continue
        found.append(pytest.param(name, {}, id=str(name)))
        for feature, options in FEATURES.items():
            if all(option in entry.defaults for option in options):
                found.append(pytest.param(name, options, id=f"{name} {feature}"))
    return found


def differs(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """The largest relative difference after any step."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(first, second, strict=True))


def test_every_optimizer_has_a_law_or_a_reason():
    assert OPTIMIZERS.keys() <= LAWS.keys() | FIXED.keys()
    assert LAWS.keys() <= OPTIMIZERS.keys() and not LAWS.keys() & FIXED.keys()
    for name, law in LAWS.items():
        assert law.options.keys() <= OPTIMIZERS[name].defaults.keys(), name


@pytest.mark.parametrize(("name", "options"), cases())
def test_another_alpha_is_the_same_run(name, options):
    # 16 times the alpha: every factor is a power of two or, for ε, of four, and float32 rounds the same on both sides
    config = config_of(name, **options)
    rebased = rebase_config(config, 32.0, lambda text: pytest.fail(text))
    assert rebased.lora_alpha == 32.0 and config.lora_alpha == 2.0
    old, new = train(config), train(rebased)
    assert all(torch.isfinite(delta).all() for delta in old)
    # two runs of the same float32 arithmetic: rounding alone, some of it amplified where signs are taken
    assert differs(new, old) < 1e-5
    assert (old[-1] - old[0]).norm() > 1e-4 * old[0].norm(), "the run must have moved, or nothing is shown"


@pytest.mark.parametrize("name", [Optimizer.SGD, Optimizer.ADAMW, Optimizer.LION_ADV, Optimizer.ADAGRAD])
def test_alpha_alone_is_another_run(name):
    config = config_of(name)
    old = train(config)
    assert differs(train(config.model_copy(update={"lora_alpha": 32.0})), old) > 0.1
    rebased = rebase_config(config, 32.0)
    # the learning rate of the other law
    wrong = rebased.learning_rate * (4 if name == Optimizer.SGD else 1 / 4)
    assert differs(train(rebased.model_copy(update={"learning_rate": wrong})), old) > 1e-3


def test_the_numbers_of_sgd_and_adam():
    # k = 16: SGD's rate goes with 1/k, Adam's with 1/√k
    for name, rate in ((Optimizer.SGD, 1 / 16), (Optimizer.ADAMW, 1 / 4)):
        config = config_of(name)
        config.unet.learning_rate = 0.5
        config.text_encoder.learning_rate = None
        rebased = rebase_config(config, 32.0)
        assert rebased.learning_rate == config.learning_rate * rate
        assert rebased.unet.learning_rate == 0.5 * rate and rebased.text_encoder.learning_rate is None
        assert rebased.embedding_learning_rate == config.learning_rate, "embeddings have no alpha"
        assert rebased.lora_init_scale == 0.25 and rebased.clip_grad_norm == 0.4 * 4
        back = rebase_config(rebased, 2.0)
        assert back.learning_rate == config.learning_rate and back.lora_init_scale == 1.0


@pytest.mark.parametrize("name", [Optimizer.SGD, Optimizer.ADAMW, Optimizer.MUON_ADV])
def test_loha_has_four_factors(name):
    config = config_of(name).model_copy(update={"peft_type": "LOHA"})
    config = TrainConfig.from_dict(config.to_dict())
    rebased = rebase_config(config, 32.0)
    assert rebased.lora_init_scale == 0.5  # 16^(-1/4)
    assert rebased.learning_rate == config.learning_rate / (4 if name == Optimizer.SGD else 2)
    assert differs(train(rebased, factors=4), train(config, factors=4)) < 1e-5  # as above


@pytest.mark.parametrize("kind", ["LORA", "LOHA"])
@pytest.mark.parametrize("name", [Optimizer.SGD, Optimizer.ADAMW, Optimizer.PRODIGY_ADV])
def test_real_adapters_train_the_same(name, kind):
    config = TrainConfig.from_dict(config_of(name).to_dict() | {"peft_type": kind})

    def run(config: TrainConfig) -> list[float]:
        generator = torch.Generator().manual_seed(1)
        root = nn.Sequential(nn.Linear(IN, OUT))
        x, y = torch.randn(16, IN, generator=generator), torch.randn(16, OUT, generator=generator)
        nn.init.normal_(root[0].weight, generator=generator)
        nn.init.zeros_(root[0].bias)
        adapters = AdapterSet("unet", root, config, seed=3)
        adapters.hook()
        groups = [{"params": adapters.parameters(), "lr": config.learning_rate, "name": "unet"}]
        optimizer = create_optimizer(config.optimizer, groups)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = (root(x) - y).abs().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(adapters.parameters(), config.clip_grad_norm)
            optimizer.step()
            losses.append(loss.item())
        return losses

    first = run(config)
    assert len(set(first)) > 3, "it must train"
    # another order of float32's roundings
    assert run(rebase_config(config, 32.0)) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "OFT_2"}, "OFT_2 can't be rebased"),
        ({"peft_type": "LOKR"}, "LOKR can't be rebased"),
        ({"training_method": "FINE_TUNE"}, "FINE_TUNE can't be rebased"),
        ({"optimizer": {"optimizer": "YOGI"}}, "YOGI can't be rebased"),
        ({"optimizer": {"optimizer": "STIEFEL_LORA"}}, "orthonormal"),
    ],
)
def test_what_cannot_be_rebased_says_why(changes, words):
    config = TrainConfig.from_dict({"training_method": "LORA", **changes})
    with pytest.raises(UserError, match=words):
        rebase_config(config, 8.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_decompose": True}, "lora_decompose"),
        ({"lora_model_name": "a.safetensors"}, "a.safetensors brings its own alpha"),
        ({"optimizer": {"optimizer": "ADAMW_ADV", "fisher_wd": True}}, "fisher_wd"),
        ({"optimizer": {"optimizer": "ADAFACTOR", "relative_step": True}}, "relative_step"),
    ],
)
def test_what_is_not_quite_the_same_is_told(changes, words):
    told = []
    rebase_config(TrainConfig.from_dict({"training_method": "LORA", **changes}), 8.0, told.append)
    assert len(told) == 1 and words in told[0]


def test_a_preset_is_rebased_into_a_preset(tmp_path):
    preset = {"training_method": "LORA", "lora_alpha": 1.0, "learning_rate": 4e-4, "optimizer": {"optimizer": "ADAMW"},
              "a_key_of_others": 7}  # fmt: skip
    path, target, told = tmp_path / "in.json", tmp_path / "out.json", []
    path.write_text(json.dumps(preset))
    rebase_preset(path, target, alpha=16.0, overwrite=False, say=told.append)
    written = json.loads(target.read_text())
    assert written["lora_alpha"] == 16.0 and written["learning_rate"] == 1e-4 and written["lora_init_scale"] == 0.25
    assert written["optimizer"]["eps"] == 4e-8 and written["optimizer"]["weight_decay"] == 0.04
    assert written["a_key_of_others"] == 7 and "lora_rank" not in written
    assert any("learning_rate: 0.0004 → 0.0001" in line for line in told)
    with pytest.raises(UserError, match="out.json exists"):
        rebase_preset(path, target, alpha=16.0, overwrite=False, say=told.append)
    with pytest.raises(UserError, match="--alpha"):
        rebase_preset(path, target, alpha=None, overwrite=True, say=told.append)
