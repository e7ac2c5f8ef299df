"""Wrong values are refused with a line that says what to do; right ones in OneTrainer's spellings are accepted."""

import math

from modules.util.config.errors import ConfigError, nearest, show_value
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer

import pytest


def problems(data: dict) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(data, "my.json")
    return {problem.path: problem.text for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("data", "path", "text"),
    [
        (
            {"validation": "false"},
            "validation",
            'found "false", expected true or false; did you mean false without quotes?',
        ),
        ({"validation": 1}, "validation", "found 1, expected true or false"),
        ({"validation": None}, "validation", "found null, expected true or false"),
        (
            {"learning_rate": "1e-4"},
            "learning_rate",
            'found "1e-4", expected a number of at least 0; did you mean 1e-4 without quotes?',
        ),
        ({"learning_rate": True}, "learning_rate", "found true, expected a number of at least 0"),
        ({"learning_rate": -1}, "learning_rate", "found -1, expected a number of at least 0"),
        ({"learning_rate": math.nan}, "learning_rate", "found NaN, expected a number of at least 0"),
        ({"noising_bias": math.inf}, "noising_bias", "found Infinity, expected a number"),
        ({"batch_size": True}, "batch_size", "found true, expected a whole number of at least 1"),
        ({"batch_size": 1.5}, "batch_size", "found 1.5, expected a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size", "found 0, expected a whole number of at least 1"),
        ({"batch_size": "x"}, "batch_size", 'found "x", expected a whole number of at least 1'),
        ({"dropout_probability": 1}, "dropout_probability", "found 1, expected a number of at least 0 and less than 1"),
        ({"ema_decay": 1.5}, "ema_decay", "found 1.5, expected a number from 0 to 1"),
        ({"clip_grad_norm": 0}, "clip_grad_norm", "found 0, expected a number more than 0, or null"),
        ({"workspace_dir": 3}, "workspace_dir", 'found 3, expected a text; did you mean "3" with quotes?'),
        (
            {"peft_type": "LORRA"},
            "peft_type",
            'found "LORRA", expected one of LORA, LOHA, OFT_2, LOKR; did you mean "LORA"?',
        ),
        (
            {"peft_type": "lora"},
            "peft_type",
            'found "lora", expected one of LORA, LOHA, OFT_2, LOKR; did you mean "LORA"?',
        ),
        ({"peft_type": 5}, "peft_type", "found 5, expected one of LORA, LOHA, OFT_2, LOKR"),
        ({"peft_type": None}, "peft_type", "found null, expected one of LORA, LOHA, OFT_2, LOKR"),
        ({"unet": None}, "unet", "found null, expected an object"),
        (
            {"optimizer": "LION"},
            "optimizer",
            'found "LION", expected an object; did you mean the key optimizer.optimizer?',
        ),
        (
            {"optimizer": {"beta1": 1}},
            "optimizer.beta1",
            "found 1, expected a number of at least 0 and less than 1, or null",
        ),
        (
            {"optimizer": {"growth_rate": math.nan}},
            "optimizer.growth_rate",
            "found NaN, expected a number of at least 1, inf for no limit, or null",
        ),
        (
            {"optimizer_defaults": {"LION": {"eps": "x"}}},
            "optimizer_defaults.LION.eps",
            'found "x", expected a number of at least 0, or null',
        ),
        ({"optimizer_defaults": {"optimizer": 3}}, "optimizer_defaults.optimizer", "found 3, expected an object"),
        ({"concepts": "x"}, "concepts", 'found "x", expected a list of objects, or null'),
        ({"concepts": [{}, 5]}, "concepts.1", "found 5, expected an object"),
        (
            {"concepts": [{"image": {"enable_random_flip": "yes"}}]},
            "concepts.0.image.enable_random_flip",
            'found "yes", expected true or false',
        ),
        (
            {"concepts": [{"text": {"caps_randomize_mode": "title, capslok"}}]},
            "concepts.0.text.caps_randomize_mode",
            'found "capslok", expected styles out of capslock, title, first, random; did you mean "capslock"?',
        ),
        ({"additional_embeddings": None}, "additional_embeddings", "found null, expected a list of objects"),
        ({"scheduler_params": [3]}, "scheduler_params.0", "found 3, expected an object"),
        (
            {"resolution": "51x"},
            "resolution",
            'found "51x", expected pixels as "512", "512,768" or "512x768", each from 8 to 65536',
        ),
        ({"resolution": True}, "resolution", "found true, expected a text"),
        ({"seed": -1}, "seed", f"found -1, expected a whole number from 0 to {2**63 - 1}"),
        (
            {"secrets": {"huggingface_token": 123456}},
            "secrets.huggingface_token",
            "found a hidden value, expected a text",
        ),
        ({"__version": "x"}, "", "__version: found 'x', expected a whole number of at least 0"),
    ],
)
def test_wrong_value(data, path, text):
    assert problems(data) == {path: text}


def test_message_with_one_problem_is_one_line():
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"lora_rank": 0}, "my.json")
    assert str(caught.value) == "my.json: lora_rank: found 0, expected a whole number from 1 to 32768"


def test_message_with_several_problems_names_each_in_a_line():
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"lora_rank": 0, "unet": 3, "optimizer": {"optimizer": "LOIN"}}, "my.json")
    lines = str(caught.value).splitlines()
    assert lines[0] == "my.json: 3 problems"
    assert [line.split(":")[0] for line in lines[1:]] == ["  unet", "  lora_rank", "  optimizer.optimizer"]
    assert lines[3].endswith('did you mean "LION"?')
    assert all(optimizer.value in lines[3] for optimizer in Optimizer)


def test_config_that_is_not_an_object():
    with pytest.raises(ConfigError, match="expected an object"):
        TrainConfig.from_dict([1])


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ({"epochs": 3.0}, lambda config: config.epochs),
        ({"learning_rate": 3}, lambda config: config.learning_rate),
        ({"clip_grad_norm": None}, lambda config: config.clip_grad_norm),
        ({"optimizer": {"growth_rate": "inf"}}, lambda config: config.optimizer.growth_rate),
        ({"optimizer": {"orthogonal_gradient": True}}, lambda config: config.optimizer.orthogonal_gradient),
        ({"optimizer": {"muon_adam_config": {}}}, lambda config: config.optimizer.muon_adam_config),
        ({"resolution": 512}, lambda config: config.resolution),
    ],
)
def test_accepted_spelling(data, read):
    expected = {
        "epochs": 3,
        "learning_rate": 3.0,
        "clip_grad_norm": None,
        "resolution": "512",
        "growth_rate": math.inf,
        "orthogonal_gradient": "flattened",
        "muon_adam_config": None,
    }
    name = next(iter(data.get("optimizer", data)))
    value = read(TrainConfig.from_dict(data))
    assert value == expected[name] and type(value) is not bool
    if name in ("epochs", "learning_rate"):
        assert type(value) is type(expected[name])


def test_assignment_is_checked():
    config = TrainConfig()
    config.peft_type = "OFT_2"
    assert config.peft_type.name == "OFT_2"
    with pytest.raises(ConfigError, match="lora_rank: found 0, expected a whole number from 1 to 32768"):
        config.lora_rank = 0
    with pytest.raises(AttributeError, match="did you mean 'lora_rank'"):
        config.lora_rnak = 4
    assert config.lora_rank == 16
    config.unet = {"train": False}
    assert config.unet.stop_training_after == 0


def test_sparse_components_keep_their_own_defaults():
    config = TrainConfig.from_dict({"text_encoder": {"train": False}})
    assert (config.text_encoder.train, config.text_encoder.stop_training_after) == (False, 30)


def test_source_is_not_changed():
    data = {"text_encoder": {"train": False}, "concepts": [{"__version": 1, "validation_concept": True}]}
    copy = {"text_encoder": {"train": False}, "concepts": [{"__version": 1, "validation_concept": True}]}
    config = TrainConfig.from_dict(data)
    config.text_encoder.train = True
    assert data == copy


def test_secrets_are_not_shown():
    config = TrainConfig.from_dict({"secrets": {"huggingface_token": "hf_secret", "cloud": {"password": "hf_secret"}}})
    assert "hf_secret" not in repr(config) + str(config) + repr(config.secrets) + str(config.to_dict())
    assert "hf_secret" not in " ".join(problems({"secrets": "hf_secret"}).values())


def test_nearest_spelling():
    assert nearest("adamw 8bit", list(Optimizer)) == "ADAMW_8BIT"
    assert nearest("qqq", list(Optimizer)) is None


def test_long_values_are_shortened():
    assert len(show_value("x" * 1000)) < 90
    assert show_value({}) == "an empty object" and show_value([1, 2]) == "a list of 2"
