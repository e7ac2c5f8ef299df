"""Gives the optimizer window the default values of our optimizers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from scaled_onetrainer.fields import OPTIMIZER_FIELDS, defaults_of
from scaled_onetrainer.members import MEMBERS
from scaled_onetrainer.run_hook import place

# keys of ours that no widget holds, so that the window would leave them as they were with another optimizer
UNSHOWN = tuple(key for key, field in OPTIMIZER_FIELDS.items() if field.kind is dict)


def apply(module: ModuleType) -> None:
    """The table that the window reads when an optimizer is chosen, or its defaults are asked for, gets our rows."""
    table, names = place(module, "OPTIMIZER_DEFAULT_PARAMETERS"), place(module, "Optimizer")
    for member in MEMBERS:
        table[names[member]] = defaults_of(member)
    for name in ("change_optimizer", "load_optimizer_defaults"):
        setattr(module, name, _with_unshown(place(module, name)))


def _with_unshown(theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that gives the options to be set in a config, and sets those that no widget holds by itself."""

    def chosen(train_config: Any) -> Any:
        found = theirs(train_config)
        for key in UNSHOWN:
            setattr(train_config.optimizer, key, getattr(found, key))
        return found

    return chosen
