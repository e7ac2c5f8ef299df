"""The tabs of the window: a form of its groups of options, a view made by hand, or both."""

import importlib
from dataclasses import dataclass

from modules.util.texts import later


@dataclass(frozen=True)
class Tab:
    """One tab.

    Attributes:
        name: key, and what stands on it, translated; its groups of options are in `form_tabs.TAB_GROUPS`.
        view: "module:Class" of a view that stands above the form, if there is one. Made as `Class(parent, app)` when
            the tab is first shown. It may have `shown()`, `closing() -> bool` (False keeps the window open),
            `may_rebuild() -> bool` (False keeps it as it is), `least_height() -> int` (pixels that it needs), where a
            form stands below it `needed_height(room) -> int` and `leave_room(panes)`, and, for the run, `start()`.
            Another preset is told by the form, as every change is.
    """

    name: str
    view: str = ""

    def load_view(self) -> type:
        """The view's class."""
        module, _, name = self.view.partition(":")
        return getattr(importlib.import_module(module), name)


TOOLS_TAB = later("tools")
TABS = (
    Tab("general"),
    Tab("model"),
    Tab("data"),
    Tab("concepts", "modules.ui.ConceptList:ConceptList"),
    Tab("training"),
    Tab("sampling", "modules.ui.item_lists:SampleList"),
    Tab("backup"),
    Tab("adapter"),
    Tab("embeddings", "modules.ui.item_lists:EmbeddingList"),
    Tab(TOOLS_TAB, "modules.ui.ToolsView:ToolsView"),
    Tab("run", "modules.ui.RunView:RunView"),
    Tab("runs", "modules.ui.RunsView:RunsView"),
)
