"""Lists of concepts, samples and embeddings: what is done to them, in the config itself and in a file of their own."""

import json
from pathlib import Path

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.config.load import load_concepts, train_config_from_dict
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.viewModel.ConfigList import ConfigList
from modules.viewModel.TrainForm import TrainForm

import pytest


def concepts_of(*names: str) -> list[dict]:
    return [{"name": name, "path": f"images/{name}"} for name in names]


def listed(key: str, item_class: type, **options) -> tuple[ConfigList, list[frozenset[str]]]:
    """A list of a config, and what its form tells listeners from now on."""
    form, told = TrainForm(train_config_from_dict(options)), []
    form.listen(told.append)
    return ConfigList(form, key, item_class), told


def in_config(*names: str) -> tuple[ConfigList, list[frozenset[str]]]:
    return listed("concepts", ConceptConfig, concepts=concepts_of(*names))


def in_file(path: Path, *names: str) -> tuple[ConfigList, list[frozenset[str]]]:
    path.write_text(json.dumps(concepts_of(*names)), encoding="utf-8")
    return listed("concepts", ConceptConfig, concept_file_name=str(path))


@pytest.fixture(params=["config", "file"])
def make(request, tmp_path):
    """make("a", "b") -> a list, what is told, and what stands where it is kept: in the config or in a file."""

    def build(*names: str):
        path = tmp_path / "concepts.json"
        found, told = in_config(*names) if request.param == "config" else in_file(path, *names)

        def kept() -> list[str]:
            concepts = found.form.config.concepts if request.param == "config" else load_concepts(path)
            return [concept.name for concept in concepts]

        return found, told, kept

    return build


def names(found: ConfigList) -> list[str]:
    return [item.name for item in found.items]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda all: all.add(ConceptConfig(name="new")), ["a", "b", "c", "new"]),
        (lambda all: all.add(ConceptConfig(name="new"), 0), ["new", "a", "b", "c"]),
        (lambda all: all.duplicate(1), ["a", "b", "b copy", "c"]),
        (lambda all: all.replace(1, ConceptConfig(name="new")), ["a", "new", "c"]),
        (lambda all: all.remove(0), ["b", "c"]),
        (lambda all: all.move(0, 1), ["b", "a", "c"]),
        (lambda all: all.move(2, -1), ["a", "c", "b"]),
        (lambda all: all.move(2, 1), ["a", "b", "c"]),
        (lambda all: all.move(0, -1), ["a", "b", "c"]),
        (lambda all: all.move(0, 9), ["b", "c", "a"]),
    ],
)
def test_every_change_is_kept_and_told(make, change, expected):
    found, told, kept = make("a", "b", "c")
    change(found)
    assert names(found) == kept() == expected
    key = "concept_file_name" if found.file else "concepts"
    assert told == [frozenset([key])], "once, and with the option that a view of it waits for"
    again = ConfigList(found.form, "concepts", ConceptConfig)
    assert names(again) == expected


def test_places_of_what_is_new(make):
    found, _, _ = make("a", "b")
    assert found.add(ConceptConfig()) == 2 and found.add(ConceptConfig(), 1) == 1 and found.duplicate(0) == 1


def test_all_of_an_item_is_kept(make):
    """Defaults are left out where it is kept, and are there when it is read."""
    found, _, _ = make("a")
    one = found.items[0].model_copy(deep=True)
    one.balancing, one.enabled, one.seed = 2.5, False, 7
    one.image.enable_random_flip, one.image.enable_crop_jitter = True, False
    one.text.keep_tags_count = 0
    found.replace(0, one)
    assert ConfigList(found.form, "concepts", ConceptConfig).items == [one]


def test_a_copy_is_its_own(make):
    found, _, _ = make("a")
    found.duplicate(0)
    found.items[1].image.enable_random_flip = True
    assert not found.items[0].image.enable_random_flip
    nameless, _ = listed("samples", SampleConfig, samples=[{"prompt": "a cat"}])
    nameless.duplicate(0)
    assert [sample.prompt for sample in nameless.items] == ["a cat", "a cat"]


def test_items_are_not_the_configs_own(make):
    """What a window edits counts when it is stored, not before."""
    found, _, kept = make("a")
    found.items[0].name = "half typed"
    assert kept() == ["a"]
    found.load()
    assert names(found) == ["a"]


def test_a_file_that_is_not_there_yet_is_an_empty_list(tmp_path):
    path = tmp_path / "new folder" / "concepts.json"
    found, _ = listed("concepts", ConceptConfig, concept_file_name=str(path))
    assert found.items == [] and found.error == "" and found.file == path and not path.exists()
    found.add(ConceptConfig(name="first"))
    assert [one.name for one in load_concepts(path)] == ["first"] and found.form.config.concepts is None


@pytest.mark.parametrize("text", ["[{", '{"name": "no list"}', '[{"balancing": -1}]', '[{"balancing": "much"}]'])
def test_a_broken_file_is_told_and_never_overwritten(tmp_path, text):
    path = tmp_path / "concepts.json"
    path.write_text(text, encoding="utf-8")
    found, told = listed("concepts", ConceptConfig, concept_file_name=str(path))
    assert found.items == [] and "concepts.json" in found.error
    with pytest.raises(ConfigError, match="it is not overwritten") as error:
        found.add(ConceptConfig(name="new"))
    assert found.error in str(error.value)
    assert path.read_text(encoding="utf-8") == text and found.items == [] and told == []
    path.write_text(json.dumps(concepts_of("mended")), encoding="utf-8")
    found.load()
    assert found.error == "" and names(found) == ["mended"]
    found.remove(0)
    assert json.loads(path.read_text(encoding="utf-8")) == []


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path):
    found, told = in_file(tmp_path / "concepts.json", "a")
    (tmp_path / "a file").write_text("in the way")
    found.form.config.concept_file_name = str(tmp_path / "a file" / "concepts.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        found.add(ConceptConfig(name="new"))
    assert names(found) == ["a"] and told == []


def test_unknown_keys_of_a_file_stay(tmp_path):
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps([{"name": "a", "//": "mine", "of_another_program": [1]}]), encoding="utf-8")
    found, _ = listed("concepts", ConceptConfig, concept_file_name=str(path))
    found.add(ConceptConfig(name="b"))
    first = json.loads(path.read_text(encoding="utf-8"))[0]
    assert first["of_another_program"] == [1] and first["//"] == "mine"


def test_a_list_is_taken_from_its_file_into_the_config(tmp_path):
    path = tmp_path / "concepts.json"
    found, told = in_file(path, "a", "b")
    before = path.read_bytes()
    assert found.file == path and found.form.config.concepts is None
    found.take_into_config()
    assert found.file is None and told == [frozenset(["concepts"])]
    assert [one.name for one in found.form.config.concepts] == ["a", "b"]
    found.remove(0)
    assert [one.name for one in found.form.config.concepts] == ["b"] and path.read_bytes() == before


def test_samples_have_a_file_and_embeddings_have_none(tmp_path):
    path = tmp_path / "samples.json"
    path.write_text('[{"prompt": "a cat", "width": 64}]', encoding="utf-8")
    samples, told = listed("samples", SampleConfig, sample_definition_file_name=str(path))
    assert [(one.prompt, one.width) for one in samples.items] == [("a cat", 64)]
    samples.add(SampleConfig(prompt="a dog"))
    assert [one["prompt"] for one in json.loads(path.read_text(encoding="utf-8"))] == ["a cat", "a dog"]
    assert told == [frozenset(["sample_definition_file_name"])]
    embeddings, told = listed("additional_embeddings", TrainEmbeddingConfig)
    assert embeddings.items == [] and embeddings.file is None
    embeddings.add(TrainEmbeddingConfig(placeholder="<one>"))
    assert [one.placeholder for one in embeddings.form.config.additional_embeddings] == ["<one>"]
    assert told == [frozenset(["additional_embeddings"])]


def test_samples_in_a_file_have_the_sizes_that_the_family_draws(tmp_path):
    path = tmp_path / "samples.json"
    path.write_text('[{"prompt": "a cat"}, {"prompt": "a dog", "width": 512}]', encoding="utf-8")
    options = {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "sample_definition_file_name": str(path)}
    found, _ = listed("samples", SampleConfig, **options)
    assert [(one.width, one.height) for one in found.items] == [(1024, 1024), (512, 1024)]
    small = found.items[0].model_copy(update={"height": 512})
    found.replace(0, small)
    again, _ = listed("samples", SampleConfig, **options)
    assert [(one.width, one.height) for one in again.items] == [(1024, 512), (512, 1024)], "512 stays 512"
    again.take_into_config()
    assert [(one.width, one.height) for one in again.form.config.samples] == [(1024, 512), (512, 1024)]


def test_a_broken_file_is_not_taken_for_an_empty_list(tmp_path):
    path = tmp_path / "concepts.json"
    path.write_text("[{", encoding="utf-8")
    found, _ = listed("concepts", ConceptConfig, concept_file_name=str(path))
    with pytest.raises(ConfigError, match="Mend the file"):
        found.take_into_config()
    assert found.form.config.concepts is None


def test_without_a_file_name_the_config_holds_what_is_added():
    found, _ = listed("concepts", ConceptConfig, concept_file_name="")
    assert found.items == [] and found.file is None
    found.add(ConceptConfig(name="a"))
    assert [one.name for one in found.form.config.concepts] == ["a"]


@pytest.mark.parametrize("change", ["another", "gone", "new"])
def test_a_file_that_another_program_changed_is_not_overwritten(tmp_path, change):
    path = tmp_path / "concepts.json"
    found, told = in_file(path, "a", "b")
    if change == "another":
        path.write_text(json.dumps(concepts_of("theirs")), encoding="utf-8")
    else:
        path.unlink()
    if change == "new":
        found.load()
        path.write_text(json.dumps(concepts_of("theirs")), encoding="utf-8")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(ConfigError, match="changed by another program"):
        found.add(ConceptConfig(name="mine"))
    assert (path.read_bytes() if path.exists() else None) == before and told == [] and found.differs()
    found.load()
    found.add(ConceptConfig(name="mine"))
    found.add(ConceptConfig(name="more"))
    expected = ["mine", "more"] if change == "gone" else ["theirs", "mine", "more"]
    assert names(found) == [one.name for one in load_concepts(path)] == expected


def test_a_file_that_was_never_read_is_not_overwritten(tmp_path):
    """Its name is typed, and nobody has told the list yet."""
    found, _ = in_file(tmp_path / "concepts.json", "a")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(concepts_of("theirs")), encoding="utf-8")
    found.form.config.concept_file_name = str(other)
    with pytest.raises(ConfigError, match="not overwritten"):
        found.add(ConceptConfig(name="mine"))
    assert [one.name for one in load_concepts(other)] == ["theirs"]


def test_a_list_differs_when_it_would_be_read_otherwise(make, tmp_path):
    found, _, _ = make("a", "b")
    assert not found.differs()
    for change in (
        lambda: found.move(0, 1), lambda: found.add(ConceptConfig(balancing=2.5)), lambda: found.duplicate(0),
        lambda: found.form.check(), lambda: found.form.changed(""),
    ):  # fmt: skip
        change()
        assert not found.differs(), "its own changes are known to it"
    if found.file:
        found.file.write_text("[{", encoding="utf-8")
    else:
        found.form.config.concepts = found.form.config.concepts[1:]
    assert found.differs()
    found.load()
    assert not found.differs()
    found.form.config.concepts = None
    found.form.config.concept_file_name = str(tmp_path / "none.json")
    assert found.differs(), "it stands elsewhere"
