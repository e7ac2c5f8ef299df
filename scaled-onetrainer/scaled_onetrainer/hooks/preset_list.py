"""Adds our presets to the list of presets."""

from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from scaled_onetrainer.members import rule_of
from scaled_onetrainer.run_hook import place

PRESETS = Path(__file__).resolve().parent.parent / "presets"
TITLE = "scaled"
# OneTrainer's function calls itself for each folder
_IN_FOLDER: ContextVar[bool] = ContextVar("in_folder", default=False)


def apply(module: ModuleType) -> None:
    """The tree of presets ends with ours, and a preset's optimizer keeps the options that the preset gives it."""
    controller = place(module, "TopBarController")
    tree = place(controller, "load_preset_tree")

    def load_preset_tree(self: Any, *args: Any, **kwargs: Any) -> list[tuple[str, Any]]:
        if _IN_FOLDER.get():
            return tree(self, *args, **kwargs)
        before = _IN_FOLDER.set(True)
        try:
            theirs, ours = tree(self, *args, **kwargs), tree(self, str(PRESETS))
        finally:
            _IN_FOLDER.reset(before)
        return [*theirs, (TITLE, ours)] if ours else theirs

    controller.load_preset_tree = load_preset_tree
    load = place(controller, "load_config_from_file")

    def load_config_from_file(self: Any, filename: str) -> Any:
        loaded = load(self, filename)
        if loaded is not None:
            keep_options(self.train_config)
        return loaded

    controller.load_config_from_file = load_config_from_file


def keep_options(config: Any) -> None:
    """Notes the options of one of our optimizers as what is chosen with it.

    The window sets an optimizer's defaults after a preset was loaded, unless the preset says the options twice.

    Args:
        config: a `TrainConfig`.
    """
    optimizer, noted = config.optimizer, config.optimizer_defaults
    name = str(optimizer.optimizer)
    if rule_of(name) is not None and name not in noted:
        noted[name] = type(optimizer).default_values().from_dict(optimizer.to_dict())
