import json

from modules.modelSaver.output import config_comment
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.hidden_values import has_hidden, is_hidden, without_hidden
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.unknown import unknown_keys_warning

import pytest

LONG = "a1B2" * 10


@pytest.mark.parametrize(
    "key",
    [
        "huggingface_token", "HF_TOKEN", "hfToken", "apiKey", "api_key", "wandb_api_key", "civitai-api-key",
        "password", "userPassword", "client_secret", "AWS_SECRET_ACCESS_KEY", "ssh_key", "credentials", "Authorization",
        "//hf_token", "access_tokens",
    ],
)  # fmt: skip
def test_keys_that_look_like_secrets(key):
    assert is_hidden(key, "short")
    # no secret is a number or a switch
    assert not is_hidden(key, 5) and not is_hidden(key, True) and not is_hidden(key, "")


@pytest.mark.parametrize(
    "key",
    ["tokenizer", "max_tokens", "special_tokens", "token_count", "max_token_length", "placeholder", "monkey", "key",
     "secretary", "keyword", "passwords_file_name", "tokenisation"],
)  # fmt: skip
def test_keys_that_do_not(key):
    assert not is_hidden(key, "short")


@pytest.mark.parametrize("key", ["token", "my_token", "Token", "__token", "pad_token"])
def test_a_token_is_a_secret_where_it_is_as_long_as_one(key):
    assert is_hidden(key, "a1B2" * 4) and not is_hidden(key, "ohwx") and not is_hidden(key, "a word " * 10)


@pytest.mark.parametrize(
    "value",
    [f"hf_{LONG}", f"see ghp_{LONG}", f"github_pat_{LONG}", f"sk-proj-{LONG}", "AKIAABCDEFGHIJKLMNOP",
     "https://user:word@host/model", f"Authorization: Bearer {LONG}"],
)  # fmt: skip
def test_values_that_look_like_secrets(value):
    assert is_hidden("note", value) and has_hidden([{"note": [value]}])


def test_others_stay_in_their_place():
    data = {"a": [f"hf_{LONG}", "word"], "b": {"hf_token": "x", "c": 1}, "d": "https://host/user@2"}
    assert without_hidden(data) == {"a": [None, "word"], "b": {"c": 1}, "d": "https://host/user@2"}
    assert data["b"]["hf_token"] == "x"


def config() -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "huggingface_token": "hf_SECRET", "unet": {"api_key": "SECRET", "mine": 1}, "include_train_config": "ALL",
            "concepts": [{"path": "images", "password": "SECRET"}], "samples": [{"prompt": "x", "note": f"hf_{LONG}"}],
            "scheduler_params": [{"key": "gamma", "value": 1, "api_token": "SECRET"}],
            "other": {"deep": [{"auth_token": "SECRET"}]},
            "secrets": {"huggingface_token": "SECRET"},
        }
    )  # fmt: skip


def test_nothing_that_is_written_beside_a_model_has_them():
    for text in (json.dumps(config().to_dict()), json.dumps(config().to_dict(sparse=True)), config_comment(config())):
        assert "SECRET" not in text and LONG not in text and '"mine": 1' in text
    # a file that the user saves with secrets has them all
    text = json.dumps(config().to_dict(secrets=True))
    assert text.count("SECRET") == 6 and LONG in text and TrainConfig.from_dict(config()) == config()


def test_the_user_is_told_the_key_and_not_the_value():
    text = unknown_keys_warning(config(), "a.json")
    assert "huggingface_token (looks like a secret, so no file gets it" in text and "other (looks like" in text
    assert "unet.mine" in text and "SECRET" not in text and LONG not in text


def test_a_class_of_options_has_no_place_for_them():
    class Own(BaseConfig):
        pass

    assert Own.from_dict({"password": "x", "note": "y"}).to_dict() == {"note": "y"}
