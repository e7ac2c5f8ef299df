"""Gives the optimizer window the default values of our optimizers."""

from types import ModuleType

from scaled_onetrainer.fields import defaults_of
from scaled_onetrainer.members import MEMBERS
from scaled_onetrainer.run_hook import place


def apply(module: ModuleType) -> None:
    """The table that the window reads when an optimizer is chosen, or its defaults are asked for, gets our rows."""
    table, names = place(module, "OPTIMIZER_DEFAULT_PARAMETERS"), place(module, "Optimizer")
    for member in MEMBERS:
        table[names[member]] = defaults_of(member)
