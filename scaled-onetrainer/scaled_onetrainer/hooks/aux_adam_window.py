"""Shows the options of our Adam in the window of Muon's auxiliary Adam, for our optimizers."""

from types import ModuleType
from typing import Any

from scaled_onetrainer.aux_adam import has_aux_adam, inherited
from scaled_onetrainer.hooks.optimizer_window import build_sections
from scaled_onetrainer.run_hook import place
from scaled_onetrainer.window_rows import option_sections


def apply(module: ModuleType) -> None:
    """`build_content` shows our rows for our optimizers, and is what it was for others."""
    view = place(module, "BaseMuonAdamWindowView")
    build = place(view, "build_content")

    def build_content(self: Any, master: Any, controller: Any, ui_state: Any) -> None:
        if not has_aux_adam(controller.parent_optimizer_type):
            build(self, master, controller, ui_state)
            return
        defaults = inherited(str(controller.parent_optimizer_type), vars(controller.config.optimizer))
        build_sections(self.components, master, ui_state, option_sections(defaults), None, None, first=0)

    view.build_content = build_content
