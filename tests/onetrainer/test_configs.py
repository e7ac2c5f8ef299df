"""Names and configs of our optimizers inside OneTrainer."""

import copy
import json
import pickle

from tests.onetrainer.inside import inside, run_python

import pytest

OURS = ["SCALED_ADAMW_ADV", "SCALED_PRODIGY_ADV", "STIEFEL_LORA", "LORA_RITE"]


def read(data: dict) -> object:
    from modules.util.config.TrainConfig import TrainConfig

    return TrainConfig.default_values().from_dict(data)


@inside
def test_names_are_members_in_every_way():
    from modules.util.enum.Optimizer import Optimizer
    from scaled_onetrainer.members import MEMBERS
    from scaled_optim.rules.registry import RULES

    theirs = ["ADAMW", "ADAMW_ADV", "PRODIGY", "SCHEDULE_FREE_SGD", "SGD"]
    assert [str(member) for member in Optimizer] == [*theirs, *MEMBERS] and len(MEMBERS) == len(RULES) >= 10
    for name in MEMBERS:
        member = Optimizer[name]
        assert member is getattr(Optimizer, name) is Optimizer(name) and isinstance(member, Optimizer)
        assert (member.name, member.value, str(member)) == (name, name, name)
        assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
        assert {member: 1}[Optimizer(name)] == 1 and member != Optimizer.SGD and member in Optimizer
        assert member.supports_fused_back_pass() and not member.is_schedule_free
    assert Optimizer.SCALED_PRODIGY_ADV.is_adaptive and not Optimizer.SCALED_ADAMW_ADV.is_adaptive
    # theirs are what they were
    assert Optimizer.PRODIGY.is_adaptive and not Optimizer.SGD.is_adaptive
    assert Optimizer.ADAMW_ADV.supports_fused_back_pass() and not Optimizer.SGD.supports_fused_back_pass()


@inside
def test_the_window_finds_defaults_of_each():
    from modules.util.enum.Optimizer import Optimizer
    from modules.util.optimizer_util import OPTIMIZER_DEFAULT_PARAMETERS, change_optimizer
    from scaled_onetrainer.fields import defaults_of
    from scaled_onetrainer.members import MEMBERS

    assert OPTIMIZER_DEFAULT_PARAMETERS[Optimizer.SGD] == {"weight_decay": 0.0}
    for name in MEMBERS:
        assert OPTIMIZER_DEFAULT_PARAMETERS[Optimizer[name]] == defaults_of(name)
        chosen = change_optimizer(read({"optimizer": {"optimizer": name}}))
        assert {key: getattr(chosen, key) for key in defaults_of(name)} == defaults_of(name)


@inside
def test_every_option_comes_back():
    from scaled_onetrainer.fields import OPTIMIZER_FIELDS, defaults_of
    from scaled_onetrainer.members import MEMBERS

    for name in MEMBERS:
        options = {}
        for key, default in defaults_of(name).items():
            # something else than the default, of the field's kind; nobody asks for its sense before a run
            kind = OPTIMIZER_FIELDS[key].kind if key in OPTIMIZER_FIELDS else float
            options[key] = {bool: not default, int: 7, float: 0.125, str: "word", dict: {"a": 1}}[kind]
        text = json.dumps(read({"optimizer": {"optimizer": name, **options}}).to_dict())
        again = read(json.loads(text))
        assert {key: getattr(again.optimizer, key) for key in options} == options
        assert json.dumps(again.to_dict()) == text


@inside
def test_unused_leaves_no_trace():
    from modules.util.config.TrainConfig import TrainConfig, TrainOptimizerConfig

    plain = TrainConfig.default_values().to_dict()
    assert not any(word in json.dumps(plain) for word in ("oft_scale_mode", "lora_init", "scaled_one", "guarded"))
    own = "optimizer beta1 beta2 eps weight_decay orthogonal_gradient stochastic_rounding muon_te1_adam_lr "
    own += "muon_te2_adam_lr muon_adam_config fused_back_pass compile __version"
    assert set(TrainOptimizerConfig.default_values().to_dict()) == set(own.split())
    # chosen and left again
    config = read({"optimizer": {"optimizer": "SCALED_ADAMW_ADV"}})
    assert read({**config.to_dict(), **plain}).to_dict() == plain


@inside
def test_adapter_options_are_written_when_they_are_used():
    assert "oft_scale_mode" not in read({"oft_scale_mode": "ROW"}).to_dict()
    found = read({"oft_scale_mode": "ELEMENTS", "lora_init": "NORMAL"}).to_dict()
    assert (found["oft_scale_mode"], found["lora_init"]) == ("ELEMENTS", "NORMAL")
    again = read(found)
    assert (again.oft_scale_mode, again.lora_init) == ("ELEMENTS", "NORMAL")


@inside
def test_a_short_preset_gets_the_defaults_of_the_rule():
    from scaled_onetrainer.fields import defaults_of

    config = read({"optimizer": {"optimizer": "SCALED_ADAMW_ADV", "beta1": 0.5}})
    expected = {**defaults_of("SCALED_ADAMW_ADV"), "beta1": 0.5}
    assert {key: getattr(config.optimizer, key) for key in expected} == expected


@inside
def test_a_section_of_a_config_changes_that_section_alone():
    config = read({"optimizer": {"optimizer": "SCALED_ADAMW_ADV", "beta1": 0.5, "scaled_optm": True}})
    config.from_dict({"learning_rate": 0.5})
    config.optimizer.from_dict({"beta2": 0.75})
    # the same name again is no choice of it
    config.optimizer.from_dict({"optimizer": "SCALED_ADAMW_ADV", "weight_decay": 0.25})
    found = config.optimizer
    assert (found.beta1, found.beta2, found.weight_decay, found.scaled_optm) == (0.5, 0.75, 0.25, True)
    assert config.learning_rate == 0.5


@inside
def test_null_is_the_default_of_the_rule():
    from scaled_onetrainer.fields import options_in
    from scaled_onetrainer.members import MEMBERS
    from scaled_optim.rules.registry import RULES

    for name, rule in MEMBERS.items():
        config = read({"optimizer": {"optimizer": name}}).optimizer
        assert options_in(name, vars(config)) == RULES[rule].defaults
        for key, nullable in config.nullables.items():
            if nullable:
                setattr(config, key, None)
        options = options_in(name, vars(config))
        # where null is allowed it is meant
        differ = {key for key, value in options.items() if value != RULES[rule].defaults[key]}
        assert all(options[key] is None for key in differ)


@inside
def test_orthogonal_gradient_is_a_word_under_a_name_of_its_own():
    from scaled_onetrainer.fields import options_in
    from scaled_optim.options import DECLARED

    word = next(value for value in DECLARED["orthogonal_gradient"].allowed.values if value not in (None, "disabled"))
    config = read({"optimizer": {"optimizer": "SCALED_ADAMW_ADV", "orthogonal_gradient": word}})
    assert config.optimizer.orthogonal_gradient is False and config.optimizer.orthogonal_gradient_mode == word
    assert options_in("SCALED_ADAMW_ADV", vars(config.optimizer))["orthogonal_gradient"] == word


@inside
def test_what_is_not_allowed_is_said_by_its_key():
    from scaled_onetrainer.fields import options_in

    for key, value in (("weight_decay", -1.0), ("state_precision", "int7"), ("beta1", 2.0)):
        config = read({"optimizer": {"optimizer": "SCALED_ADAMW_ADV", key: value}})
        with pytest.raises(ValueError, match=f"^{key}: found "):
            options_in("SCALED_ADAMW_ADV", vars(config.optimizer))


@inside
def test_options_of_ours_are_refused_for_theirs():
    from scaled_onetrainer.hooks.config_fields import check_names

    def refused(optimizer: str, key: str, value: object) -> str:
        with pytest.raises(ValueError) as error:
            check_names(read({"optimizer": {"optimizer": optimizer, key: value}}).optimizer)
        return str(error.value)

    message = refused("ADAMW_ADV", "scaled_optm", True)
    # who means the one of the same name is told that one alone
    assert message.startswith("optimizer.scaled_optm: OneTrainer's ADAMW_ADV") and message.endswith(
        ": SCALED_ADAMW_ADV."
    )
    message = refused("SGD", "scaled_optm", True)
    assert "SCALED_LION_ADV" in message and "SCALED_ADAMW_ADV" in message
    check_names(read({"optimizer": {"optimizer": "ADAMW_ADV", "beta1": 0.5}}).optimizer)
    check_names(read({"optimizer": {"optimizer": "SCALED_ADAMW_ADV", "scaled_optm": True}}).optimizer)


@inside
def test_the_guard_stands_in_files_and_nowhere_else():
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.LearningRateScheduler import LearningRateScheduler

    config = read({"optimizer": {"optimizer": "LORA_RITE"}, "learning_rate_scheduler": "LINEAR"})
    written = config.to_dict()
    assert written["learning_rate_scheduler"] == "CUSTOM"
    assert written["custom_learning_rate_scheduler"] == "scaled_onetrainer.required.ScaledOneTrainer"
    again = TrainConfig.default_values().from_dict(json.loads(json.dumps(written)))
    assert again.learning_rate_scheduler is LearningRateScheduler.LINEAR
    assert again.custom_learning_rate_scheduler is None and again.to_dict() == written
    # packing for other processes is such a file, too
    assert config.to_pack_dict(secrets=True)["learning_rate_scheduler"] == "CUSTOM"
    # a class that people named themselves is kept
    custom = read({"optimizer": {"optimizer": "LORA_RITE"}, "learning_rate_scheduler": "CUSTOM",
                   "custom_learning_rate_scheduler": "torch.optim.lr_scheduler.ConstantLR"})  # fmt: skip
    again = read(custom.to_dict())
    assert again.custom_learning_rate_scheduler == "torch.optim.lr_scheduler.ConstantLR"
    # chosen another one since: nothing is left of the guard
    written["optimizer"] = {"optimizer": "SGD"}
    plain = read(written).to_dict()
    assert plain["learning_rate_scheduler"] == "LINEAR" and "guarded" not in json.dumps(plain)


WRITE = """
import json, pathlib, sys
import scaled_onetrainer.startup
from modules.util.config.TrainConfig import TrainConfig
path, made = map(pathlib.Path, sys.argv[1:])
places = {"workspace_dir": str(path.parent), "output_model_destination": str(made)}
config = TrainConfig.default_values().from_dict({"optimizer": {"optimizer": "SCALED_LION_ADV"}, **places})
path.write_text(json.dumps(config.to_dict()))
"""


def test_a_config_of_ours_stops_without_the_plugin(tmp_path):
    config, made = tmp_path / "config.json", tmp_path / "out.safetensors"
    run_python("-c", WRITE, str(config), str(made))
    script = ["scripts/train.py", "--config-path", str(config)]
    # not at work
    said = run_python(*script, code=1, SCALED_ONETRAINER="0")
    assert "RuntimeError: This preset trains with an optimizer of scaled-onetrainer" in said
    # not installed
    said = run_python("-c", SCRIPT_ALONE, *script, code=1)
    assert "ModuleNotFoundError: " in said and "scaled_onetrainer" in said and "step 4" not in said
    assert not made.exists()
    # at work
    assert "step 4" in run_python("-m", "scaled_onetrainer", "train", *script[1:]) and made.exists()


# as where the plugin was uninstalled
SCRIPT_ALONE = """
import runpy, sys
sys.modules["scaled_onetrainer"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
