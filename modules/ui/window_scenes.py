"""Everything that the window can show, one after the other: for pictures of it, and for the check of what is cut."""

import tkinter as tk
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.ConceptWindow import CHECK
from modules.ui.RunView import MESSAGES, OUTPUT, QUEUE
from modules.ui.tabs import TABS, TOOLS_TAB
from modules.util.config.SampleConfig import SampleConfig

if TYPE_CHECKING:
    from modules.ui.App import App

Scene = tuple[str, tk.Misc]
QUESTION = (
    "A question as long as those that the window asks: the file /home/somebody/pictures/of/something/lora.safetensors "
    "exists, with another content. Replace it, or keep both?"
)  # fmt: skip


def scenes(app: "App", wait: Callable[[Callable[[], bool]], None]) -> Iterator[Scene]:
    """(name, window that shows it) of each; it is shown until the next one is asked for.

    Args:
        app: the window, with its catalogue loaded.
        wait: lets the window work until something is so.
    """
    yield from _tabs(app)
    yield from _foot(app, wait)
    yield from _optimizer(app, wait)
    yield from _items(app, wait)
    yield from _pictures(app, wait)
    yield from _dialogs(app)
    yield from _popups(app)


def _tabs(app: "App") -> Iterator[Scene]:
    for tab in TABS:
        app.show_tab(tab.name)
        if tab.name not in (TOOLS_TAB, "run"):
            yield tab.name, app
    tools = app.views[TOOLS_TAB][1]
    app.show_tab(TOOLS_TAB)
    for name in tools.tabs.buttons:
        tools.show_tool(name)
        yield f"tools, {name}", app
    run = app.views["run"][1]
    app.show_tab("run")
    for name in (QUEUE, OUTPUT, MESSAGES):
        run.show_foot(name)
        yield f"run, {name}", app


def _foot(app: "App", wait: Callable[[Callable[[], bool]], None]) -> Iterator[Scene]:
    """The list of what is wrong, and an offer."""
    app.show_tab("training")
    rate = app.form.text("learning_rate")
    app.form.set_text("learning_rate", "-1")
    app.form.set_text("min_noising_strength", "1")
    app.form.set_text("optimizer.optimizer", "STIEFEL_LORA")
    wait(lambda: bool(app.problems.toggle.winfo_manager()))
    app.problems.toggle.invoke()
    yield "what is wrong", app
    app.problems.toggle.invoke()
    app.form.set_text("learning_rate", rate)
    app.form.reset("min_noising_strength")
    app.form.set_text("optimizer.optimizer", "ADAMW_ADV")


def _optimizer(app: "App", wait: Callable[[Callable[[], bool]], None]) -> Iterator[Scene]:
    app.open_optimizer()
    wait(lambda: app.optimizer_window is not None)
    window = app.optimizer_window
    yield "optimizer", window
    window.destroy()


def _items(app: "App", wait: Callable[[Callable[[], bool]], None]) -> Iterator[Scene]:
    """The windows of the first concept, with all its pages, and of a sample."""
    app.show_tab("concepts")
    concepts = app.views["concepts"][1]
    # a list in a file would be asked about
    concepts.list.take_into_config()
    concepts.edit(0)
    window = concepts.window
    wait(lambda: window.preview is not None)
    for name, button in window.tabs.buttons.items():
        # where there is room, the options stand beside the others
        if not button.winfo_manager():
            continue
        window.show_page(name)
        if name == CHECK:
            wait(lambda: not window.checked.is_busy)
        yield f"concept, {name}", window
    window.destroy()
    app.show_tab("sampling")
    samples = app.views["sampling"][1]
    samples.list.take_into_config()
    if not samples.list.items:
        samples.list.add(SampleConfig(prompt="a picture"))
        samples.refresh()
    samples.edit(0)
    yield "sample", samples.window
    samples.window.destroy()


def _pictures(app: "App", wait: Callable[[Callable[[], bool]], None]) -> Iterator[Scene]:
    """The pictures of the first concept, with all pages beside them."""
    app.open_pictures(app.views["concepts"][1].list.items[0])
    window = app.picture_window
    wait(lambda: bool(window.pictures.pictures))
    for name in window.pages.buttons:
        window.show_page(name)
        yield f"pictures, {name}", window
    window.destroy()


def _dialogs(app: "App") -> Iterator[Scene]:
    for name, entry in (("question", None), ("question with a field", "a name")):
        window = AskWindow(app, app.tools, "A question", QUESTION, ("Keep both", "Replace it", "Cancel"), entry)
        yield name, window
        window.destroy()


def _popups(app: "App") -> Iterator[Scene]:
    """Lists, the search, and help, at fields near the window's edges."""
    app.show_tab("training")
    popup, tooltip = app.tools.popup, app.tools.tooltip
    for name, control in (("families", app.top.options["model_type"]), ("methods", app.top.options["training_method"])):
        control.button.invoke()
        yield f"list of {name}", popup._window
        popup.close()
    app.top._list_looks()
    yield "list of looks", popup._window
    popup.close()
    app.top.search.entry.focus_force()
    app.top.search.entry.insert(0, "rate")
    app.update()
    yield "search", app.top.search._window
    app.top.search.clear()
    for name, widget in (("the scale", app.top._looks), ("the number of steps", app.problems._size)):
        tooltip.show(widget, f"Help at {name}. " * 8)
        yield f"help at {name}", tooltip._window
        with suppress(tk.TclError):
            tooltip.hide()
