"""Values from the command line."""

import copy

from modules.util.config.errors import ConfigError
from modules.util.config.load import train_config_from_dict

import pytest


def test_values_are_json_or_text():
    config = train_config_from_dict(
        {"concepts": [{"path": "a"}, {"path": "b", "image": {}}]},
        overrides=[
            "lora_rank=8",
            "batch_size=2.0",
            "learning_rate=.5",
            "clip_grad_norm=null",
            "validation=true",
            "optimizer.optimizer=LION",
            "optimizer.growth_rate=inf",
            "optimizer.orthogonal_gradient=true",
            "text_encoder.train=false",
            "resolution=512",
            "workspace_dir=true",
            'cache_dir="a b"',
            "layer_filter=a=b,c",
            "concepts.1.path=c",
            "concepts.1.image.enable_random_flip=true",
            "optimizer_defaults.ADAM.beta1=0.5",
            "custom_learning_rate_scheduler=null",
            "secrets.cloud.ports=[1]",
            "save_filename_prefix=",
        ],
    )
    assert (config.lora_rank, config.batch_size, config.learning_rate, config.clip_grad_norm) == (8, 2, 0.5, None)
    assert (config.validation, config.optimizer.optimizer, config.optimizer.growth_rate) == (True, "LION", float("inf"))
    assert config.optimizer.orthogonal_gradient == "flattened"
    assert (config.text_encoder.train, config.text_encoder.stop_training_after) == (False, 30)
    assert (config.resolution, config.workspace_dir, config.cache_dir) == ("512", "true", "a b")
    assert (config.layer_filter, config.save_filename_prefix) == ("a=b,c", "")
    assert [concept.path for concept in config.concepts] == ["a", "c"]
    assert config.concepts[1].image.enable_random_flip
    assert config.optimizer_defaults["ADAM"].beta1 == 0.5
    assert config.custom_learning_rate_scheduler is None
    assert config.secrets.cloud == {"ports": [1]}


def test_whole_objects_and_order():
    config = train_config_from_dict(
        {},
        overrides=[
            'concepts=[{"path": "x"}]',
            "concepts.0.path=y",
            'unet={"train": false}',
            "lora_rank=1",
            "lora_rank=2",
        ],
    )
    assert (config.concepts[0].path, config.unet.train, config.lora_rank) == ("y", False, 2)


def test_list_of_plain_objects():
    config = train_config_from_dict(
        {"scheduler_params": [{"key": "a", "value": "1"}]}, overrides=["scheduler_params.0.value=2"]
    )
    assert config.scheduler_params == [{"key": "a", "value": 2}]


def test_source_is_not_changed():
    data = {"optimizer": {"beta1": 0.5}, "concepts": [{"path": "a"}]}
    before = copy.deepcopy(data)
    train_config_from_dict(data, overrides=["optimizer.beta1=0.1", "concepts.0.path=b"])
    assert data == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora_rank", 'override "lora_rank": expected key=value, as in optimizer.beta1=0.95'),
        ("=3", 'override "=3": expected key=value, as in optimizer.beta1=0.95'),
        ("lora_rnak=3", "override: lora_rnak: there is no such option; did you mean lora_rank?"),
        ("optimizer.bta1=3", "override: optimizer.bta1: there is no such option; did you mean optimizer.beta1?"),
        ("zzz.a=3", "override: zzz: there is no such option"),
        ("lora_rank.a=3", "override: lora_rank: holds a single value and has no option 'a'"),
        ("concepts.5.path=x", "override: concepts.5: there is no such entry; concepts has entries 0 to 0"),
        ("concepts.-1.path=x", "override: concepts.-1: there is no such entry; concepts has entries 0 to 0"),
        ("concepts.x=y", "override: concepts.x: there is no such entry; concepts has entries 0 to 0"),
        ("concepts.0.paht=x", "override: concepts.0.paht: there is no such option; did you mean concepts.0.path?"),
        ("samples.0.prompt=x", "override: samples: is not in this file, so its entries cannot be changed one by one"),
        ("unet.train=no", 'my.json with overrides: unet.train: found "no", expected true or false'),
        ("lora_rank=zwei", 'my.json with overrides: lora_rank: found "zwei", expected a whole number from 1 to 32768'),
    ],
)
def test_wrong_override(override, message):
    with pytest.raises(ConfigError) as caught:
        train_config_from_dict({"concepts": [{}]}, "my.json", [override])
    assert str(caught.value) == message


def test_override_into_a_wrong_value():
    with pytest.raises(ConfigError, match="override: unet: holds 3, expected an object"):
        train_config_from_dict({"unet": 3}, overrides=["unet.train=true"])


def test_secret_is_not_repeated_in_errors():
    with pytest.raises(ConfigError) as caught:
        train_config_from_dict({}, overrides=["secrets.hugingface_token=hf_secret"])
    assert "hf_secret" not in str(caught.value)


def test_override_of_an_older_file_uses_todays_names():
    config = train_config_from_dict(
        {"__version": 0, "optimizer": "ADAM", "optimizer_beta1": 0.5}, overrides=["optimizer.beta2=0.7"]
    )
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.5, 0.7)
