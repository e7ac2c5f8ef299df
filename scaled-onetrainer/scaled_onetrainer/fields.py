"""The config keys that our optimizers and adapters have in OneTrainer, and what they hold by default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaled_onetrainer.members import MEMBERS
from scaled_optim.allowed_values import BOOLEAN, Choice, Numbers, Options, Text
from scaled_optim.options import DECLARED
from scaled_optim.rules.registry import RULES

# Keys that OneTrainer has with another meaning, so that ours have names of their own there. MuonWithAuxAdam would make
# it split the groups itself.
RENAMED = {"orthogonal_gradient": "orthogonal_gradient_mode", "MuonWithAuxAdam": "muon_aux_adam"}

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


def _field(option: str) -> Field:
    """The field of an option; rules have defaults of their own, which replace its null when the rule is chosen."""
    allowed = DECLARED[option].allowed
    if allowed == BOOLEAN:
        return Field(False, bool, False)
    if isinstance(allowed, Numbers):
        return Field(None, int if allowed.whole else float, True)
    if isinstance(allowed, Options):
        return Field(None, dict, True)
    if isinstance(allowed, Choice) and all(value is None or isinstance(value, bool) for value in allowed.values):
        return Field(None, bool, True)
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
    return {**{key_of(option): value for option, value in rule.defaults.items()}, **encoders, **run}


def options_in(member: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's options as a config of OneTrainer holds them.

    Args:
        values: by key; what is missing, or null where the rule takes no null, is the rule's default.

    Raises:
        ValueError: a value that is not allowed; the message begins with the key.
    """
    found = {}
    for option, default in RULES[MEMBERS[member]].defaults.items():
        value = values.get(key_of(option))
        allowed = DECLARED[option].allowed
        if isinstance(allowed, Options) and not value:
            value = None
        if value is None and not allowed.allows(None):
            value = default
        if isinstance(allowed, Numbers) and not allowed.whole and isinstance(value, int) and value is not None:
            value = value if isinstance(value, bool) else float(value)
        if not allowed.allows(value):
            raise ValueError(f"{key_of(option)}: found {value!r}, expected {allowed}.")
        found[option] = value
    return found
