"""Saving: equal, deterministic, in one step; and the hash."""

import json
import math
import os

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.config.field_type import field_type, option_of
from modules.util.config.load import pack, train_config_from_dict
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.write_json import json_text, write_json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
SPELLED = {
    "resolution": st.sampled_from(["512", "512,768", "512x768", 640]),
    "resolution_override": st.sampled_from(["512", "64x32"]),
    "caps_randomize_mode": st.sampled_from(["title", "capslock, random"]),
    "orthogonal_gradient": st.sampled_from([True, False, "per_rank", None]),
}


def values(config_class: type[BaseConfig], name: str, depth: int) -> st.SearchStrategy:
    """JSON values that a field accepts."""
    kind, declared = field_type(config_class, name), option_of(config_class, name)
    if name in SPELLED:
        return SPELLED[name]
    low = declared.ge if declared.ge is not None else declared.gt
    high = declared.le if declared.le is not None else declared.lt
    if kind.is_config:
        strategy = objects(kind.kind, depth - 1)
    elif kind.is_enum:
        strategy = st.sampled_from(kind.values)
    elif kind.kind is bool:
        strategy = st.booleans()
    elif kind.kind is int:
        whole = st.integers(None if low is None else math.ceil(low), None if high is None else math.floor(high))
        strategy = whole | whole.filter(lambda value: abs(value) < 2**53).map(float)
    elif kind.kind is float:
        strategy = st.floats(
            low,
            high,
            exclude_min=declared.gt is not None,
            exclude_max=declared.lt is not None,
            allow_nan=False,
            allow_infinity=False,
        )
        strategy = strategy | st.just("inf") if declared.infinite else strategy
    elif kind.kind is str:
        # no path has a null byte
        strategy = TEXT.filter(lambda text: "\0" not in text) if declared.path else TEXT
    elif kind.kind is list:
        item = objects(kind.item, depth - 1) if kind.item else st.dictionaries(TEXT, PLAIN, max_size=2)
        strategy = st.lists(item, max_size=2)
    else:
        strategy = st.dictionaries(TEXT, objects(kind.item, depth - 1) if kind.item else PLAIN, max_size=2)
    return st.none() | strategy if kind.nullable else strategy


@st.composite
def objects(draw, config_class: type[BaseConfig], depth: int = 3) -> dict:
    """Sparse JSON objects that a config accepts, unknown keys and comments included."""
    if depth < 0:
        return {}
    names = draw(st.lists(st.sampled_from(list(config_class.model_fields)), max_size=6, unique=True))
    known = {name: draw(values(config_class, name, depth)) for name in names}
    unknown = draw(
        st.dictionaries(
            TEXT.filter(lambda key: key not in config_class.model_fields and key != "__version"), PLAIN, max_size=2
        )
    )
    comments = {f"//{name}": "why" for name in names[:1]}
    return known | unknown | comments


@settings(max_examples=120, deadline=None, database=None)
@given(data=objects(TrainConfig))
def test_what_is_written_reads_back_equal(data):
    config = TrainConfig.from_dict(data)
    written = json_text(config.to_dict(secrets=True))
    again = TrainConfig.from_dict(json.loads(written))
    assert again == config
    assert json_text(again.to_dict(secrets=True)) == written
    assert again.config_hash() == config.config_hash()
    sparse = TrainConfig.from_dict(json.loads(json_text(config.to_dict(secrets=True, sparse=True))))
    assert sparse.to_dict(secrets=True) == config.to_dict(secrets=True)


@settings(max_examples=40, deadline=None, database=None)
@given(concept=objects(ConceptConfig), sample=objects(SampleConfig))
def test_concepts_and_samples_read_back_equal(concept, sample):
    for config_class, data in ((ConceptConfig, concept), (SampleConfig, sample)):
        config = config_class.from_dict(data)
        assert config_class.from_dict(json.loads(json_text(config.to_dict()))) == config


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.dictionaries(st.sampled_from(list(TrainConfig.model_fields)) | TEXT, PLAIN, max_size=4))
def test_any_json_loads_or_is_a_config_error(data):
    try:
        train_config_from_dict(data, warn=lambda _: None)
    except ConfigError as error:
        assert error.problems and str(error)


def test_full_file_has_every_option_and_the_format():
    data = TrainConfig().to_dict()
    assert next(iter(data)) == "__version" and data["__version"] == 11
    assert set(data) - {"__version"} == set(TrainConfig.model_fields) - {"secrets"}
    assert TrainConfig().to_dict(sparse=True) == {}


def test_infinity_is_written_as_onetrainer_does():
    config = TrainConfig.from_dict({"optimizer": {"growth_rate": math.inf}})
    assert config.to_dict()["optimizer"]["growth_rate"] == "inf"


def test_secrets_are_written_only_on_request(tmp_path):
    config = TrainConfig.from_dict({"secrets": {"huggingface_token": "hf_secret"}})
    config.save(tmp_path / "plain.json")
    assert "secret" not in (tmp_path / "plain.json").read_text(encoding="utf-8")
    config.save(tmp_path / "own.json", secrets=True)
    again = TrainConfig.from_dict(json.loads((tmp_path / "own.json").read_text(encoding="utf-8")))
    assert again == config
    assert "hf_secret" not in json.dumps(
        pack(TrainConfig.from_dict(config.to_dict(secrets=True) | {"concepts": [], "samples": []})).to_dict()
    )


def test_saving_makes_folders_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a b" / "ü.json"
    TrainConfig().save(path)
    TrainConfig().save(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["ü.json"]
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_failed_saving_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "my.json"
    path.write_text("old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ConfigError, match=r"my.json: cannot be written: No space left on device"):
        TrainConfig().save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.json"]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        TrainConfig().save(tmp_path / "file" / "my.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_json(tmp_path, {})


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_saving_through_a_link(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    TrainConfig().save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert "lora_rank" in (tmp_path / "real.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"seed": 1},
        {"optimizer": {"beta1": 0.5}},
        {"unet": {"learning_rate": 1e-3}},
        {"concepts": []},
        {"concept_file_name": "other.json"},
        {"base_model_name": "x"},
        {"additional_embeddings": [{}]},
        {"optimizer": {"muon_adam_config": {"beta1": 0.5}}},
    ],
)
def test_hash_sees_what_changes_the_weights(change):
    assert TrainConfig.from_dict(change).config_hash() != TrainConfig().config_hash()


@pytest.mark.parametrize(
    "change",
    [
        {"workspace_dir": "x"},
        {"cache_dir": "x"},
        {"output_model_destination": "x"},
        {"secrets": {"huggingface_token": "x"}},
        {"samples": [{"prompt": "x"}]},
        {"backup_after": 1},
        {"tensorboard": False},
        {"unknown": 3},
        {"//": "comment"},
        {"unet": {"unknown": 3}},
        {"optimizer_defaults": {"ADAM": {}}},
        {"continue_last_backup": True},
        {"learning_rate": 3e-6},
        {"epochs": 100.0},
        {"temp_device": "cuda"},
    ],
)
def test_hash_ignores_what_does_not(change):
    assert TrainConfig.from_dict(change).config_hash() == TrainConfig().config_hash()


def test_hash_of_concepts():
    def of(**concept):
        return TrainConfig.from_dict(
            {"concepts": [concept], "concept_file_name": concept.get("name", "")}
        ).config_hash()

    assert of(path="a") != of(path="b")
    assert of(path="a", name="x", concept_stats={"n": 1}) == of(path="a", name="y")


def test_hash_is_stable():
    # a change here means that run records of earlier versions cannot be compared with new ones: do it on purpose
    hashed = TrainConfig.from_dict({"lora_rank": 8}).config_hash()
    assert len(hashed) == 64 and int(hashed, 16) > 0
    assert hashed == TrainConfig.from_dict(TrainConfig.from_dict({"lora_rank": 8}).to_dict()).config_hash()
