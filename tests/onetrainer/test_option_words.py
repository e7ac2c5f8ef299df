"""What a config of OneTrainer holds for our options, where its own key of the name can't hold it."""

from scaled_onetrainer.fields import (
    OPTIMIZER_FIELDS,
    RENAMED,
    as_field,
    defaults_of,
    key_of,
    options_in,
    renamed,
    words_of,
)
from scaled_onetrainer.members import MEMBERS
from scaled_optim.allowed_values import Choice
from scaled_optim.options import DECLARED
from scaled_optim.rules.registry import RULES

import pytest

MUON = "SCALED_MUON_ADV"


@pytest.mark.parametrize("member", MEMBERS)
def test_the_defaults_that_a_window_sets_are_the_rules(member):
    assert options_in(member, defaults_of(member)) == dict(RULES[MEMBERS[member]].defaults)
    assert options_in(member, {}) == dict(RULES[MEMBERS[member]].defaults)


@pytest.mark.parametrize("value", [None, False, True])
def test_a_choice_of_three_is_a_word(value):
    word = as_field("rms_rescaling", value)
    field = OPTIMIZER_FIELDS[key_of("rms_rescaling")]
    assert isinstance(word, field.kind)
    assert options_in(MUON, {"rms_rescaling_mode": word})["rms_rescaling"] is value


def test_every_choice_has_words_and_only_they_are_taken():
    for option, declared in DECLARED.items():
        if isinstance(declared.allowed, Choice) and OPTIMIZER_FIELDS[key_of(option)].kind is str:
            words = words_of(declared.allowed)
            assert tuple(words.values()) == declared.allowed.values and all(isinstance(word, str) for word in words)
    with pytest.raises(ValueError, match="rms_rescaling_mode: found 'True', expected one of auto, off, on."):
        options_in(MUON, {"rms_rescaling_mode": "True"})


def test_keys_of_our_own_trainer_are_taken_over():
    given = {
        "optimizer": MUON,
        "orthogonal_gradient": True,
        "MuonWithAuxAdam": False,
        "rms_rescaling": None,
        "muon_adam_config": {"beta2": 0.5},
        "beta1": 0.8,
    }
    found = renamed(given)
    assert not found.keys() & RENAMED.keys()
    options = options_in(MUON, found)
    assert options["orthogonal_gradient"] == "flattened" and options["MuonWithAuxAdam"] is False
    assert (
        options["rms_rescaling"] is None and options["muon_adam_config"] == {"beta2": 0.5} and options["beta1"] == 0.8
    )


def test_a_key_of_ours_wins():
    assert renamed({"rms_rescaling": True, "rms_rescaling_mode": "off"})["rms_rescaling_mode"] == "off"
