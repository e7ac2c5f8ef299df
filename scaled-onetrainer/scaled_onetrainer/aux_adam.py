"""The options of Muon's auxiliary Adam, as a config of OneTrainer holds them and as a window shows them."""

from collections.abc import Mapping
from typing import Any

from scaled_onetrainer.fields import as_field, key_of, option_value
from scaled_onetrainer.members import MEMBERS, rule_of
from scaled_optim.rules.registry import RULES

OPTION = "muon_adam_config"
ADAM = "ADAMW_ADV"
MEMBER = next(member for member, rule in MEMBERS.items() if rule == ADAM)


def has_aux_adam(optimizer: object) -> bool:
    """Whether an optimizer is one of ours that trains some parameters with Adam."""
    rule = rule_of(optimizer)
    return rule is not None and OPTION in RULES[rule].defaults


def inherited(member: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The auxiliary Adam's options by name, where its own set says nothing.

    Args:
        member: one of our optimizers that has such an Adam.
        values: of the optimizer, by key; one that is not allowed counts as its default.
    """
    rule = RULES[MEMBERS[member]]
    options = dict(rule.defaults)
    for option in rule.defaults.keys() - {OPTION}:
        try:
            options[option] = option_value(option, rule.defaults[option], values.get(key_of(option)))
        except ValueError:
            continue
    return rule.adam_options(options)


def shown_values(member: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a window shows of the auxiliary Adam, by key. Arguments: see `inherited`."""
    set_ = values.get(key_of(OPTION)) or {}
    every = inherited(member, values)
    return {key_of(option): as_field(option, set_.get(option, value)) for option, value in every.items()}


def changed_options(member: str, values: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any] | None:
    """The auxiliary Adam's own set after a window: what differs from what it has anyway; None: nothing does.

    Args:
        member, values: see `inherited`.
        shown: what the window held when it was closed, by key.

    Raises:
        ValueError: a value that is not allowed.
    """
    found = {}
    for option, value in inherited(member, values).items():
        new = option_value(option, value, shown.get(key_of(option)))
        if new != value:
            found[option] = new
    return found or None
