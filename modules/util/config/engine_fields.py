"""Fields of a config for the options of the engine's rules, made from the engine's own declarations."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from scaled_optim.allowed_values import Numbers, Options, Text
from scaled_optim.options import DECLARED, FEATURES, GENERAL, MUON, PRODIGY, Declared

GROUPS = {
    GENERAL: OptionGroup.OPTIMIZER,
    FEATURES: OptionGroup.OPTIMIZER_FEATURES,
    MUON: OptionGroup.OPTIMIZER_MUON,
    PRODIGY: OptionGroup.OPTIMIZER_LIBRARY,
}
# What optimizers of libraries that take the same key do with it.
LIBRARY_WORDS = {
    "alpha": "RMSprop: its averaging factor. AdEMAMix: the same.",
    "beta3": "CAME, AdEMAMix, D-Adapt Adan: a third averaging factor.",
    "d0": "D-Adaptation: the same.",
    "growth_rate": "D-Adaptation: the same.",
    "use_cautious": "Prodigy Plus: the same.",
    "use_grams": "Prodigy Plus: the same.",
}


def value_type(name: str, declared: Declared) -> type | None:
    """The type of an option's values in a config; None for one that holds another config."""
    allowed = declared.allowed
    if isinstance(allowed, Options):
        return None
    if isinstance(allowed, Numbers):
        return int if allowed.whole else float
    if isinstance(allowed, Text):
        return str
    texts = [value for value in allowed.values if isinstance(value, str)]
    return StrEnum(_class_name(name), {text.upper(): text for text in texts}) if texts else bool


def bounds(allowed: Any) -> dict[str, Any]:
    """Bounds of a number, as `option` takes them."""
    if not isinstance(allowed, Numbers):
        return {}
    found: dict[str, Any] = {"gt" if allowed.above else "ge": allowed.low}
    if allowed.high < float("inf"):
        found["lt" if allowed.below else "le"] = allowed.high
    elif not allowed.below and not allowed.whole:
        found["infinite"] = True
    return found


def engine_field(name: str, declared: Declared, default: Any = None) -> Any:
    """The field of an option; null, its default, takes the optimizer's own."""
    words = f"{declared.help} {LIBRARY_WORDS.get(name, '')}".strip()
    facts = {"advanced": declared.advanced, "unit": declared.unit, **bounds(declared.allowed)}
    return option(default, declared.title, words, GROUPS[declared.section], **facts)


def engine_fields() -> Mapping[str, tuple[Any, Any]]:
    """Every option but those that hold other configs: name -> (annotation, field)."""
    kinds = {name: value_type(name, declared) for name, declared in DECLARED.items()}
    return {name: (kind | None, engine_field(name, DECLARED[name])) for name, kind in kinds.items() if kind is not None}


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
