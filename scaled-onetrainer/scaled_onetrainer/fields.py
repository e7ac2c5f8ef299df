"""The config keys that our optimizers and adapters have in OneTrainer, and what they hold by default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaled_onetrainer.members import MEMBERS
from scaled_optim.allowed_values import BOOLEAN, Choice, Numbers, Options, Text
from scaled_optim.options import DECLARED
from scaled_optim.rules.registry import RULES

# Keys that OneTrainer has with another meaning, so that ours have names of their own there. MuonWithAuxAdam would make
# it split the groups itself. Its rms_rescaling is a switch, which turns null into off as soon as a window shows it. Its
# muon_adam_config holds every option of its own AdamW_adv, and goes along when another optimizer is chosen.
RENAMED = {
    "orthogonal_gradient": "orthogonal_gradient_mode",
    "MuonWithAuxAdam": "muon_aux_adam",
    "rms_rescaling": "rms_rescaling_mode",
    "muon_adam_config": "muon_aux_adam_config",
}
# How a config names the values of a choice that has more than off and on.
SWITCH_WORDS = {"auto": None, "off": False, "on": True}

# OneTrainer's own keys for the learning rates that Muon's auxiliary Adam has in text encoders
ENCODER_RATES = ("muon_te1_adam_lr", "muon_te2_adam_lr")


@dataclass(frozen=True)
class Field:
    """A key of a config, in the words of OneTrainer's own.

    Attributes:
        default: of a config that says nothing of it.
        kind: bool, int, float, str or dict.
        nullable: whether it may be null.
    """

    default: Any
    kind: type
    nullable: bool


def key_of(option: str) -> str:
    """The key that an option has in OneTrainer."""
    return RENAMED.get(option, option)


def words_of(allowed: Choice) -> dict[str, Any]:
    """The words that a config has for the values of a choice that is no switch, in the order of the choice."""
    words = {value: word for word, value in SWITCH_WORDS.items()}
    return {value if isinstance(value, str) else words[value]: value for value in allowed.values}


def is_switch(allowed: object) -> bool:
    """Whether a value is true or false and nothing else."""
    return allowed == BOOLEAN


def as_field(option: str, value: Any) -> Any:
    """The value of an option as a config of OneTrainer holds it."""
    allowed = DECLARED[option].allowed
    if not isinstance(allowed, Choice) or is_switch(allowed):
        return value
    return next((word for word, known in words_of(allowed).items() if known is value or known == value), value)


def _field(option: str) -> Field:
    """The field of an option; rules have defaults of their own, which replace its null when the rule is chosen."""
    allowed = DECLARED[option].allowed
    if is_switch(allowed):
        return Field(False, bool, False)
    if isinstance(allowed, Numbers):
        return Field(None, int if allowed.whole else float, True)
    if isinstance(allowed, Options):
        return Field(None, dict, True)
    if isinstance(allowed, Choice | Text):
        return Field(None, str, True)
    raise TypeError(f"{option}: no field for {allowed!r}")


OPTIMIZER_FIELDS: dict[str, Field] = {
    **{key_of(option): _field(option) for rule in RULES.values() for option in rule.defaults},
    "fused_kernels": Field(True, bool, False),
}
"""Of `TrainOptimizerConfig`, by key; OneTrainer has some of them itself."""

SCALE_FORMS, STARTS = ("ROW", "ELEMENTS"), ("KAIMING", "NORMAL", "ORTHONORMAL")
ADAPTER_FIELDS: dict[str, Field] = {
    # ROW is what OneTrainer's own switch does, so a config that does not name a form means it
    "oft_scale_mode": Field("ROW", str, False),
    "lora_init": Field("KAIMING", str, False),
}
"""Of `TrainConfig`, by key."""


def defaults_of(member: str) -> dict[str, Any]:
    """What choosing one of our optimizers sets, by key: its rule's options, and how it runs."""
    rule = RULES[MEMBERS[member]]
    encoders = dict.fromkeys(ENCODER_RATES) if "muon_adam_lr" in rule.defaults else {}
    run = {"fused_back_pass": False, "compile": False, "fused_kernels": True}
    options = {key_of(option): as_field(option, value) for option, value in rule.defaults.items()}
    return {**options, **encoders, **run}


def options_in(member: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's options as a config of OneTrainer holds them.

    Args:
        values: by key; what is missing, or null where the rule takes no null, is the rule's default.

    Raises:
        ValueError: a value that is not allowed; the message begins with the key.
    """
    defaults = RULES[MEMBERS[member]].defaults
    return {option: option_value(option, default, values.get(key_of(option))) for option, default in defaults.items()}


def option_value(option: str, default: Any, value: Any) -> Any:
    """The value of an option, from what a config holds for it.

    Args:
        option: name of it.
        default: what null and nothing mean.
        value: as the config holds it.

    Raises:
        ValueError: it is not allowed; the message begins with the key.
    """
    allowed = DECLARED[option].allowed
    if value is None or (isinstance(allowed, Options) and not value):
        return None if allowed.allows(None) and not isinstance(allowed, Choice) else default
    if isinstance(allowed, Choice) and not is_switch(allowed):
        words = words_of(allowed)
        if value not in words:
            raise ValueError(f"{key_of(option)}: found {value!r}, expected one of {', '.join(words)}.")
        return words[value]
    if isinstance(allowed, Numbers) and not allowed.whole and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not allowed.allows(value):
        raise ValueError(f"{key_of(option)}: found {value!r}, expected {allowed}.")
    return value


def renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one of our optimizers under their keys in OneTrainer, from those that our own trainer writes.

    Args:
        data: of a `TrainOptimizerConfig`.
    """
    found = dict(data)
    for option, key in RENAMED.items():
        if option not in data or key in data:
            continue
        value = found.pop(option)
        if option == "orthogonal_gradient" and isinstance(value, bool):
            value = "flattened" if value else "disabled"
        found[key] = as_field(option, value)
    return found
