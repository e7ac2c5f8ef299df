"""Presets: those of the program are only read, the user's own are never replaced unasked."""

import json
from pathlib import Path

from modules.util.config.errors import ConfigError
from modules.util.config.TrainConfig import TrainConfig
from modules.viewModel.PresetLibrary import PresetChangedError, PresetLibrary, PresetTakenError

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ROOT / "training_presets"


@pytest.fixture
def library(tmp_path) -> PresetLibrary:
    return PresetLibrary(BUILT_IN, tmp_path / "own")


def refuse(text: str) -> None:
    pytest.fail(text)


def test_names_are_folders_and_file_without_the_number_sign(library):
    names = [preset.name for preset in library.presets()]
    assert "Tiny/tiny LoRA" in names and len(set(names)) == len(names) == len(list(BUILT_IN.rglob("*.json")))
    assert all(preset.built_in for preset in library.presets())


def test_every_preset_opens_and_saves_unchanged(library, tmp_path):
    for preset in library.presets():
        config = library.open(preset, refuse)
        assert not library.is_modified(config) and library.current == preset
        written = library.save_as(f"copy of {preset.name}", config)
        again = library.open(written, refuse)
        assert again == config
        saved = json.loads(written.path.read_text(encoding="utf-8"))
        assert saved == config.to_dict(sparse=True)
        # all that the file says and that is not a default anyway is in the copy
        for key, value in json.loads(preset.path.read_text(encoding="utf-8")).items():
            if not isinstance(value, (dict, list)) and value != TrainConfig().to_dict().get(key):
                assert saved[key] == value, (preset.name, key)


def test_a_change_is_noticed_until_it_is_undone_or_saved(library):
    config = library.open(library.find("Tiny/tiny LoRA"), refuse)
    config.lora_rank = 7
    assert library.is_modified(config)
    config.lora_rank = 32
    assert not library.is_modified(config)
    config.lora_rank = 7
    library.save_as("mine", config)
    assert not library.is_modified(config)
    config.lora_rank = 8
    library.save(config)
    assert not library.is_modified(config) and library.open(library.find("mine"), refuse).lora_rank == 8


def test_what_came_with_the_program_is_never_written_to(library):
    preset = library.find("Tiny/tiny LoRA")
    before = preset.path.read_bytes()
    config = library.open(preset, refuse)
    config.lora_rank = 7
    assert not library.can_save
    with pytest.raises(ConfigError, match="came with the program"):
        library.save(config)
    with pytest.raises(ConfigError, match="came with the program"):
        library.delete(preset)
    # the same name is another file
    own = library.save_as(preset.name, config)
    assert not own.built_in and library.find(own.key) == own and library.find(preset.key) == preset
    assert preset.path.read_bytes() == before
    assert library.open(library.find(own.key), refuse).lora_rank == 7
    assert library.open(library.find(preset.key), refuse).lora_rank == 32
    keys = [preset.key for preset in library.presets()]
    assert len(set(keys)) == len(keys)


def test_what_is_suggested_hides_nothing(library):
    assert library.suggestion == ""
    config = library.open(library.find("Tiny/tiny LoRA"), refuse)
    assert library.suggestion == "Tiny/tiny LoRA mine"
    library.save_as(library.suggestion, config)
    assert library.suggestion == "Tiny/tiny LoRA mine" and library.can_save


def test_an_own_name_stays_as_it_was_given(library):
    saved = library.save_as("#x", TrainConfig(epochs=3))
    assert saved.name == "#x" and library.find("#x") == saved == library.presets()[0]


def test_what_another_program_changed_is_replaced_only_on_request(library):
    path = library.save_as("mine", TrainConfig(epochs=3)).path
    library.save(TrainConfig(epochs=4))
    path.write_text('{"epochs": 99}', encoding="utf-8")
    with pytest.raises(PresetChangedError, match="mine has been changed by another program"):
        library.save(TrainConfig(epochs=5))
    assert path.read_text(encoding="utf-8") == '{"epochs": 99}'
    library.save(TrainConfig(epochs=5), replace=True)
    assert library.open(library.find("mine"), refuse).epochs == 5
    path.write_text('{"epochs": 98}', encoding="utf-8")
    library.open(library.find("mine"), refuse)
    library.save(TrainConfig(epochs=6))
    path.unlink()
    library.save(TrainConfig(epochs=7))
    assert json.loads(path.read_text(encoding="utf-8")) == {"epochs": 7}


def test_an_own_preset_is_replaced_only_on_request(library):
    library.save_as("a/b", TrainConfig())
    with pytest.raises(PresetTakenError, match="a/b"):
        library.save_as("a/b", TrainConfig(epochs=3))
    library.save_as("a/b", TrainConfig(epochs=3), replace=True)
    assert library.open(library.find("a/b"), refuse).epochs == 3
    library.delete(library.find("a/b"))
    assert library.find("a/b") is None and library.current is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"), (" ", "empty"), ("a//b", "a part of it is"), ("../a", "'..' begins with a dot"),
        ("a/../b", "begins with a dot"), (".hidden", "'.hidden' begins with a dot"), ("a:b", "has ':' in it"),
        ("what?", "has '?' in it"), ("a\\b", "in it"), ("a./b", "'a.' ends with a dot"), ("a.", "ends with a dot"),
        ("a /b", "ends with a blank"), ("x .json", "ends with a blank"), ("CON", "'CON' is a name that Windows keeps"),
        ("nul", "Windows"), ("a/Aux.b", "'Aux.b' is a name that Windows keeps"), ("com1", "Windows"),
        ("ä" * 150, "longer than"),
    ],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_refused_with_the_reason(library, tmp_path, name, reason):
    with pytest.raises(ConfigError, match="cannot be a file name: ") as refused:
        library.save_as(name, TrainConfig())
    assert reason in str(refused.value)
    assert not list(tmp_path.rglob("*.json"))


def test_a_broken_preset_changes_nothing(library, tmp_path):
    library.save_as("good", TrainConfig())
    (tmp_path / "own" / "bad.json").write_text('{"epochs": 0}', encoding="utf-8")
    with pytest.raises(ConfigError, match="epochs: found 0, expected a whole number from 1 to 1000000"):
        library.open(library.find("bad"), refuse)
    assert library.current.name == "good"


def test_tokens_are_not_written(library):
    config = TrainConfig()
    config.secrets.huggingface_token = "hf_secret"
    assert "hf_secret" not in library.save_as("mine", config).path.read_text(encoding="utf-8")


def test_keys_of_newer_programs_are_kept(library, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "new.json").write_text('{"epochs": 5, "of_tomorrow": 1}', encoding="utf-8")
    heard = []
    config = library.open(library.find("new"), heard.append)
    assert "of_tomorrow" in heard[0]
    config.epochs = 6
    assert json.loads(library.save(config).path.read_text(encoding="utf-8")) == {"epochs": 6, "of_tomorrow": 1}
