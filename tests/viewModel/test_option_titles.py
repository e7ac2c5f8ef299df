"""Texts of the config and the trainer, in the words of the form."""

import re
from collections import Counter

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError, Problem
from modules.util.config.TrainConfig import TrainConfig
from modules.viewModel.FormField import form_fields
from modules.viewModel.option_titles import in_titles, list_lines, problem_line, title_of_path

import pytest


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("learning_rate", "Learning rate"),
        ("unet.learning_rate", "U-Net › Learning rate"),
        ("optimizer.beta1", "Optimizer › Beta 1"),
        ("optimizer.muon_adam_config.beta1", "Optimizer › Auxiliary Adam options › Beta 1"),
        ("concepts", "Concepts"),
        ("concepts.0.path", "Concepts › 1 › Folder"),
        ("concepts.1.image.enable_crop_jitter", "Concepts › 2 › Images › Crop jitter"),
        ("optimizer_defaults.ADAMW.beta1", "Optimizer memory › ADAMW › Beta 1"),
        # what is no option keeps its name
        ("unet.no_such", "unet.no_such"),
        ("learning_rate.x", "learning_rate.x"),
        ("", ""),
    ],
)
def test_titles_along_a_path(path, title):
    assert title_of_path(TrainConfig, path) == title


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("found true, as force_epsilon_prediction is true", "found true, as “Force epsilon prediction” is true"),
        # by its name alone an option goes by its own title
        ("beta1 is 0.9 and unet.train on", "“Beta 1” is 0.9 and “U-Net › Train” on"),
        ("the run's `learning_rate`. null: none", "the run's “Learning rate”. Empty: none"),
        ("Used if `concepts` is null.", "Used if “Concepts” is empty."),
        # "compile" has two meanings, "train" is a word like others
        ("compile it, then train", "compile it, then train"),
        ("there is no folder 'learning_rate'", "there is no folder 'learning_rate'"),
        ("a/learning_rate/b, learning_rate.json, my-lora_rank", "a/learning_rate/b, learning_rate.json, my-lora_rank"),
        ("C:\\lora_rank\\x, no_such_key, FLOAT_32, v1.5", "C:\\lora_rank\\x, no_such_key, FLOAT_32, v1.5"),
        (
            "no folder '/my lora_rank pictures', name 'lora_rank'",
            "no folder '/my lora_rank pictures', name 'lora_rank'",
        ),
        ('found "a lora_rank b", as lora_rank is', 'found "a lora_rank b", as “Rank” is'),
        ("the run's lora_rank isn't 'x'", "the run's “Rank” isn't 'x'"),
        ("`no_such_key` or `LORA`", "no_such_key or LORA"),
    ],
)
def test_keys_become_titles_and_nothing_else_does(text, shown):
    assert in_titles(TrainConfig, text) == shown
    assert in_titles(TrainConfig, shown) == shown


def test_a_problem_is_told_with_the_title():
    problem = Problem("unet.learning_rate", "found -1, expected at least 0, or null")
    assert problem_line(TrainConfig, problem) == "U-Net › Learning rate: found -1, expected at least 0, or empty"
    problem = Problem("image.enable_crop_jitter", "is null")
    assert problem_line(ConceptConfig, problem) == "Images › Crop jitter: is empty"
    assert problem_line(TrainConfig, Problem("", "is no config")) == "is no config"


def test_a_list_in_a_file_is_told_of_by_its_places():
    error = ConfigError([Problem("0.image.enable_crop_jitter", "found 3"), Problem("", "is null")], "my concepts.json")
    assert list_lines(TrainConfig, "concepts", error) == [
        "'my concepts.json': Concepts › 1 › Images › Crop jitter: found 3", "'my concepts.json': is empty",
    ]  # fmt: skip
    error = ConfigError(Problem("concept_file_name", "found an empty text, expected a file, as concepts is null"))
    assert list_lines(TrainConfig, "concepts", error) == ["found an empty text, expected a file, as concepts is empty"]


def test_no_two_options_have_the_same_title():
    paths = [one.path for one in form_fields(TrainConfig)]
    titles = Counter(title_of_path(TrainConfig, path) for path in paths)
    assert [title for title, count in titles.items() if count > 1] == []


def test_no_help_in_the_form_names_a_key():
    keys = {one.name for one in form_fields(TrainConfig) if "_" in one.name}
    for one in form_fields(TrainConfig):
        found = keys & set(re.findall(r"\w+", in_titles(TrainConfig, one.declared.help)))
        assert not found, f"{one.path}: {found}"
