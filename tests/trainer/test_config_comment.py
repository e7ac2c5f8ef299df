"""The config in a file that is shared: settings, and nothing of whose machine it was."""

import json

from modules.modelSaver.output import config_comment
from modules.util.config.TrainConfig import TrainConfig

import pytest


@pytest.mark.parametrize(
    "home", ["/home/someone/", "C:\\Users\\someone\\", "\\\\server\\someone\\", "~/someone/", "/mnt/someone/a b/"]
)
def test_absolute_paths_are_cut_to_their_last_name(home):
    text = {"prompt_path": f"{home}p.txt", "tag_dropout_special_tags": f"{home}tags.csv"}
    config = TrainConfig.from_dict(
        {
            "include_train_config": "ALL", "base_model_name": f"{home}base", "workspace_dir": f"{home}ws",
            "cache_dir": f"{home}cache", "output_model_destination": f"{home}lora.safetensors",
            "concept_file_name": f"{home}c.json", "sample_definition_file_name": f"{home}s.json",
            "lora_model_name": f"{home}start.safetensors", "unet": {"model_name": f"{home}unet"},
            "concepts": [{"path": f"{home}photos/", "text": text}], "samples": [{"prompt": "/a word"}],
            "unknown": {"deep": [f"{home}x"]}, "embedding": {"model_name": f"{home}e.pt"},
        }
    )  # fmt: skip
    found = json.loads(config_comment(config))
    assert "someone" not in json.dumps(found)
    assert found["base_model_name"] == "base" and found["concepts"][0]["path"] == "photos"
    assert found["concepts"][0]["text"]["prompt_path"] == "p.txt" and found["unknown"] == {"deep": ["x"]}
    # no path, so left alone
    assert found["samples"][0]["prompt"] == "/a word"


def test_relative_paths_and_names_on_a_hub_stay():
    config = TrainConfig.from_dict(
        {"include_train_config": "SETTINGS", "base_model_name": "owner/model", "cache_dir": "workspace/cache one"}
    )
    found = json.loads(config_comment(config))
    assert found["base_model_name"] == "owner/model" and found["cache_dir"] == "workspace/cache one"
