"""Adds our options to OneTrainer's configs, so that presets, the window and backups have them."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from scaled_onetrainer.fields import ADAPTER_FIELDS, OPTIMIZER_FIELDS, Field, defaults_of, renamed
from scaled_onetrainer.members import MEMBERS, rule_of
from scaled_onetrainer.run_hook import place

# A run stops at this learning rate scheduler where the plugin is missing, before it would train with other optimizers.
GUARD = "scaled_onetrainer.required.ScaledOneTrainer"
SCHEDULER, CLASS = "learning_rate_scheduler", "custom_learning_rate_scheduler"
KEPT = {SCHEDULER: f"guarded_{SCHEDULER}", CLASS: f"guarded_{CLASS}"}
# the attribute of a config's class that holds the keys which OneTrainer itself has not
OURS = "scaled_onetrainer_keys"


def apply(module: ModuleType) -> None:
    """Both configs get our fields; files say nothing of them where none of our features is used."""
    optimizer, train = place(module, "TrainOptimizerConfig"), place(module, "TrainConfig")
    _add_fields(optimizer, OPTIMIZER_FIELDS)
    _add_fields(train, ADAPTER_FIELDS)
    _hook_optimizer(optimizer)
    _hook_train(train)


def _add_fields(kind: type, fields: Mapping[str, Field]) -> None:
    """Lets `kind.default_values` add the fields that it lacks."""
    make: Callable[[], Any] = place(kind, "default_values")

    def default_values() -> Any:
        config = make()
        added = [key for key in fields if key not in config.types]
        for key in added:
            field = fields[key]
            setattr(config, key, field.default)
            config.types[key], config.nullables[key] = field.kind, field.nullable
            config.default_values[key] = field.default
        setattr(kind, OURS, tuple(added))
        return config

    kind.default_values = staticmethod(default_values)
    default_values()


def _hook_optimizer(kind: type) -> None:
    read, write = place(kind, "from_dict"), place(kind, "to_dict")

    def from_dict(self: Any, data: Mapping[str, Any], migrate: bool = True) -> Any:
        data, name = _completed(self, data), data.get("optimizer")
        if rule_of(name) is not None:
            data = renamed(data)
            if str(self.optimizer) != str(name):
                data = {**defaults_of(str(name)), **data}
        return read(self, data, migrate=migrate)

    def to_dict(self: Any) -> dict[str, Any]:
        found = write(self)
        return found if rule_of(self.optimizer) is not None else _without_defaults(self, found)

    kind.from_dict, kind.to_dict = from_dict, to_dict


def _hook_train(kind: type) -> None:
    read, write = place(kind, "from_dict"), place(kind, "to_dict")

    def from_dict(self: Any, data: Mapping[str, Any], migrate: bool = True) -> Any:
        return read(self, unguarded(_completed(self, data)), migrate=migrate)

    def to_dict(self: Any) -> dict[str, Any]:
        found = _without_defaults(self, write(self))
        return guarded(found) if rule_of(self.optimizer.optimizer) is not None else found

    kind.from_dict, kind.to_dict = from_dict, to_dict


def _completed(config: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """A dictionary that has all of OneTrainer's own keys lacks ours because they said nothing: with their defaults.

    Others change single values, and leave the rest as it was.
    """
    ours = getattr(type(config), OURS)
    if all(key in data for key in config.types if key not in ours):
        return {**{key: config.default_values[key] for key in ours}, **data}
    return dict(data)


def _without_defaults(config: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Without those of our keys that say nothing."""
    ours = getattr(type(config), OURS)
    return {key: value for key, value in found.items() if key not in ours or value != config.default_values[key]}


def guarded(found: Mapping[str, Any]) -> dict[str, Any]:
    """A config that stops without the plugin, where OneTrainer alone would train with its own AdamW.

    It finds no class for the learning rate scheduler then. The real one is kept beside it.
    """
    return {**found, **{kept: found.get(key) for key, kept in KEPT.items()}, SCHEDULER: "CUSTOM", CLASS: GUARD}


def unguarded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it was before `guarded`."""
    if data.get(CLASS) != GUARD:
        return dict(data)
    rest = {key: value for key, value in data.items() if key not in KEPT.values()}
    return {**rest, SCHEDULER: data.get(KEPT[SCHEDULER]) or "CONSTANT", CLASS: data.get(KEPT[CLASS])}


def check_names(config: Any) -> None:
    """ValueError if an optimizer of OneTrainer's own is given an option that only ours have.

    Args:
        config: a `TrainOptimizerConfig`.
    """
    name = str(config.optimizer)
    if rule_of(name) is not None:
        return
    for key in getattr(type(config), OURS):
        if getattr(config, key) != config.default_values[key]:
            own = next((member for member, rule in MEMBERS.items() if rule == name), None)
            owners = [own] if own else [member for member in MEMBERS if key in defaults_of(member)]
            raise ValueError(
                f"optimizer.{key}: OneTrainer's {name} has no such option; set optimizer.optimizer to one that has: "
                f"{', '.join(owners)}."
            )
