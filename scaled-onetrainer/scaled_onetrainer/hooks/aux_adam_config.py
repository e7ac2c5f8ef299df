"""Hands the window of Muon's auxiliary Adam its options, and takes them back, for our optimizers."""

from types import ModuleType
from typing import Any

from scaled_onetrainer.aux_adam import MEMBER, OPTION, changed_options, has_aux_adam, shown_values
from scaled_onetrainer.fields import key_of
from scaled_onetrainer.run_hook import place


def apply(module: ModuleType) -> None:
    """For our optimizers the window gets a config of our Adam, and only what was changed in it is kept."""
    controller = place(module, "OptimizerParamsWindowController")
    prepare, save = place(controller, "prepare_muon_adam_config"), place(controller, "save_muon_adam_config")

    def prepare_muon_adam_config(self: Any) -> tuple[Any, Any]:
        optimizer = self.config.optimizer
        if not has_aux_adam(optimizer.optimizer):
            return prepare(self)
        adam = type(optimizer).default_values()
        adam.from_dict({"optimizer": MEMBER, **shown_values(str(optimizer.optimizer), vars(optimizer))})
        return adam, optimizer.optimizer

    def save_muon_adam_config(self: Any, adam_config: Any) -> None:
        optimizer = self.config.optimizer
        if not has_aux_adam(optimizer.optimizer):
            save(self, adam_config)
            return
        try:
            found = changed_options(str(optimizer.optimizer), vars(optimizer), vars(adam_config))
        except ValueError as error:
            print(f"Nothing was changed in the options of the auxiliary Adam. {error}")
            return
        setattr(optimizer, key_of(OPTION), found)
        self.on_close()

    controller.prepare_muon_adam_config = prepare_muon_adam_config
    controller.save_muon_adam_config = save_muon_adam_config
