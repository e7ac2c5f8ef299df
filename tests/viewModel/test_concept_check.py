"""The dataset check of a concept's window: what is told while it goes on, and when it no longer holds."""

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.load import train_config_from_dict
from modules.viewModel.ConceptCheck import ConceptCheck
from modules.viewModel.ConceptModel import CheckResult


def test_what_it_tells():
    check, config, concept = ConceptCheck(), train_config_from_dict({}), ConceptConfig(path="a folder")
    assert not check.is_begun and check.heading == "Reads every image and caption."
    check.begin(config, concept)
    assert check.is_begun and check.is_busy and check.heading == "Checking …"
    check.take(CheckResult("7 images", ("a line",)))
    assert not check.is_busy and (check.heading, check.lines) == ("7 images", ("a line",))
    check.begin(config, concept)
    check.take(ValueError("no folder"))
    assert (check.heading, check.lines, check.trouble) == ("no folder", (), "no folder")


def test_other_options_make_it_old():
    check, config, concept = ConceptCheck(), train_config_from_dict({}), ConceptConfig(path="a folder")
    check.compare(config, concept)
    assert not check.is_stale, "there is nothing to be old"
    check.begin(config, concept)
    check.take(CheckResult("7 images", ()))
    for one, key, value, old in (
        (concept, "name", "another", False), (config, "concepts", [concept], False),
        (concept, "path", "another", True), (concept, "path", "a folder", False),
        (config, "resolution", "768", True),
    ):  # fmt: skip
        setattr(one, key, value)
        check.compare(config, concept)
        assert check.is_stale == old, key
    assert check.heading == "Options have changed; check again. Before: 7 images"
    check.begin(config, concept)
    assert not check.is_stale


def test_options_that_change_meanwhile_count():
    check, config, concept = ConceptCheck(), train_config_from_dict({}), ConceptConfig(path="a folder")
    check.begin(config, concept.model_copy(deep=True))
    concept.include_subdirectories = True
    check.compare(config, concept)
    check.take(CheckResult("7 images", ()))
    assert "check again" in check.heading
