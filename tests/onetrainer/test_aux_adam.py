"""The options of Muon's auxiliary Adam: what its window shows, and what is kept of it."""

from scaled_onetrainer.aux_adam import changed_options, has_aux_adam, inherited, shown_values
from scaled_onetrainer.fields import defaults_of, options_in
from scaled_onetrainer.members import MEMBERS
from scaled_optim.rules.registry import RULES

import pytest

AUX = [member for member in MEMBERS if has_aux_adam(member)]


def test_only_muons_have_one():
    assert AUX == ["SCALED_MUON_ADV", "SCALED_ADAMUON_ADV"]
    assert not has_aux_adam("MUON_ADV")


@pytest.mark.parametrize("member", AUX)
def test_what_is_shown_and_not_changed_is_not_kept(member):
    values = {**defaults_of(member), "weight_decay": 0.3, "state_precision": "bf16_sr"}
    shown = shown_values(member, values)
    assert shown["weight_decay"] == 0.3 and shown["state_precision"] == "bf16_sr" and shown["beta2"] == 0.99
    assert changed_options(member, values, shown) is None


@pytest.mark.parametrize("member", AUX)
def test_what_is_changed_is_trained(member):
    values = {**defaults_of(member), "weight_decay": 0.3}
    shown = {**shown_values(member, values), "weight_decay": 0.0, "orthogonal_gradient_mode": "per_rank"}
    values["muon_aux_adam_config"] = changed_options(member, values, shown)
    assert values["muon_aux_adam_config"] == {"weight_decay": 0.0, "orthogonal_gradient": "per_rank"}
    options = options_in(member, values)
    rule = RULES[MEMBERS[member]]
    rule.check(options)
    adam = rule.adam_options(options)
    assert adam["weight_decay"] == 0.0 and adam["orthogonal_gradient"] == "per_rank"
    again = shown_values(member, values)
    assert again["weight_decay"] == 0.0 and again["orthogonal_gradient_mode"] == "per_rank"


def test_a_wrong_value_of_muon_does_not_close_the_window():
    values = {**defaults_of(AUX[0]), "weight_decay": -1.0, "state_precision": "fp99"}
    assert inherited(AUX[0], values)["weight_decay"] == 0.0
    with pytest.raises(ValueError, match="state_precision"):
        changed_options(AUX[0], values, {"state_precision": "fp99"})
