"""Works OneTrainer's own windows in either toolkit: types, chooses, reads and takes pictures."""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

SIZE = (1000, 1400)
SCREEN = "1400x1500x24"
WAIT = 0.6
RECORDED = ("label", "entry", "switch", "options", "options_kv", "button")


@dataclass(frozen=True)
class Made:
    """One call of a function that makes a widget.

    Attributes:
        kind: name of the function.
        at: row and column.
        key: of the config; empty: it changes none.
        text: of a label or button.
        help: of its tooltip.
        values: of a dropdown.
        widget: what was made.
    """

    kind: str
    at: tuple[int, int]
    key: str
    text: str
    help: str
    values: tuple[str, ...]
    widget: Any = field(compare=False)

    def facts(self) -> list[Any]:
        return [self.kind, list(self.at), self.key, self.text, self.help, list(self.values)]


class Recorder:
    """Notes what OneTrainer's functions are called with, and lets them do their work.

    Args:
        components: the module that has them.
    """

    def __init__(self, components: ModuleType) -> None:
        self.made: list[Made] = []
        for name in RECORDED:
            setattr(components, name, self._noting(name, getattr(components, name)))

    def _noting(self, kind: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            widget = make(*args, **kwargs)
            rest = list(args[3:])
            text = rest.pop(0) if kind in ("label", "button") and rest else ""
            values = rest.pop(0) if kind in ("options", "options_kv") and rest else kwargs.get("values", ())
            values = tuple(str(value[1]) if isinstance(value, tuple) else str(value) for value in values)
            key = "" if kind in ("label", "button") else str(kwargs.get("var_name", rest[1] if len(rest) > 1 else ""))
            at = (args[1], args[2]) if len(args) > 2 else (kwargs["row"], kwargs["column"])
            self.made.append(Made(kind, at, key, text, kwargs.get("tooltip") or "", values, widget))
            return widget

        return noting

    def since(self, start: int) -> list[Made]:
        return self.made[start:]


class Qt:
    """PySide6 without a display."""

    name = "qt"

    def __init__(self) -> None:
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
        # as OneTrainer's own start script: shiboken looks into what is imported after it
        import_module("matplotlib.pyplot")
        import_module("pydantic._internal._validators")
        self.components = import_module("modules.util.ui.pyside6_components")
        self.recorder = Recorder(self.components)
        self.app = import_module("modules.util.ui.pyside6_util").create_application()
        self.state = import_module("modules.util.ui.PySide6UIState").PySide6UIState
        self.error = import_module("modules.util.ui.validation").ERROR_BORDER_COLOR

    def end(self) -> None:
        """Nothing is left to end."""

    def settle(self, seconds: float = 0.0) -> None:
        end = time.monotonic() + seconds
        self.app.sendPostedEvents(None, 52)  # QEvent.DeferredDelete, which only an event loop sends otherwise
        self.app.processEvents()
        while time.monotonic() < end:
            self.app.processEvents()
            time.sleep(0.01)

    def optimizer_window(self, controller: Any, state: Any) -> Any:
        view = import_module("modules.ui.PySide6OptimizerParamsWindowView").PySide6OptimizerParamsWindowView
        window = view(None, controller, state)
        return self._shown(window)

    def lora_tab(self, controller: Any, state: Any) -> Any:
        view = import_module("modules.ui.PySide6LoraTabView").PySide6LoraTabView
        return self._shown(view(None, controller, state), (900, 420))

    def top_bar(self, controller: Any, state: Any) -> Any:
        view = import_module("modules.ui.PySide6TopBarView").PySide6TopBarView
        nothing = lambda *_: None  # noqa: E731
        bar = view(None, controller, state, nothing, nothing, nothing)
        return self._shown(bar, (1000, 70))

    def _shown(self, window: Any, size: tuple[int, int] | None = None) -> Any:
        if size:
            window.resize(*size)
        window.show()
        self.settle()
        return window

    def close(self, window: Any) -> None:
        window.close()
        window.deleteLater()
        self.settle()

    def resize(self, window: Any) -> None:
        window.resize(*SIZE)
        self.settle()

    def picture(self, window: Any, path: Path) -> None:
        self.settle()
        window.grab().save(str(path))

    def press(self, made: Made) -> None:
        made.widget.click()
        self.settle()

    def choose(self, made: Made, value: str) -> None:
        made.widget.setCurrentText(value)
        self.settle()

    def type(self, made: Made, text: str) -> None:
        from PySide6.QtCore import Qt as Keys
        from PySide6.QtTest import QTest

        made.widget.selectAll()
        QTest.keyClick(made.widget, Keys.Key.Key_Delete)
        QTest.keyClicks(made.widget, text)
        # as on leaving it; Return would press the ok of the window, too
        made.widget.editingFinished.emit()
        self.settle()

    def shown(self, made: Made) -> Any:
        if made.kind == "switch":
            return made.widget.isChecked()
        return made.widget.text() if made.kind == "entry" else made.widget.currentText()

    def is_marked(self, made: Made) -> bool:
        return self.error in made.widget.styleSheet()

    def during_dialog(self, work: Callable[[Any], None]) -> None:
        """Runs work on the dialog that is opened next, and closes it."""
        from PySide6.QtCore import QTimer

        def run() -> None:
            dialog = self.app.activeModalWidget()
            try:
                work(dialog)
            finally:
                dialog.accept()

        QTimer.singleShot(100, run)

    def preset_menu(self, made: Any) -> list[tuple[str, Any]]:
        return menu_of_qt(made.menu())

    def picture_of_menu(self, button: Any, title: str, path: Path) -> None:
        menu = button.menu()
        menu.popup(button.mapToGlobal(button.rect().bottomLeft()))
        self.settle()
        menu.grab().save(str(path))
        for action in menu.actions():
            if action.text() == title:
                action.menu().popup(menu.pos())
                self.settle()
                action.menu().grab().save(str(path.with_stem(f"{path.stem}_{title}")))
                action.menu().close()
        menu.close()


def menu_of_qt(menu: Any) -> list[tuple[str, Any]]:
    """A menu as names, each with its entries or with what choosing it does."""
    return [
        (action.text(), menu_of_qt(action.menu()) if action.menu() else action.trigger) for action in menu.actions()
    ]


class Tk:
    """customtkinter on a virtual display of its own."""

    name = "ctk"

    def __init__(self) -> None:
        self._display, number = start_display()
        os.environ["DISPLAY"] = number
        self.components = import_module("modules.util.ui.ctk_components")
        self.recorder = Recorder(self.components)
        ctk = import_module("customtkinter")
        ctk.set_appearance_mode("Dark")
        ctk.set_default_color_theme("blue")
        self.ctk, self.root = ctk, ctk.CTk()
        self.root.geometry("1000x430+0+0")
        self.root.grid_columnconfigure(0, weight=1)
        kind = import_module("modules.util.ui.CtkUIState").CtkUIState
        self.state = lambda config: kind(self.root, config)
        self.error = import_module("modules.util.ui.validation").ERROR_BORDER_COLOR
        self.settle()

    def end(self) -> None:
        self.root.destroy()
        end_display(self._display)

    def settle(self, seconds: float = 0.0) -> None:
        end = time.monotonic() + seconds
        self.root.update()
        while time.monotonic() < end:
            self.root.update()
            time.sleep(0.01)

    def optimizer_window(self, controller: Any, state: Any) -> Any:
        view = import_module("modules.ui.CtkOptimizerParamsWindowView").CtkOptimizerParamsWindowView
        window = view(self.root, controller, state)
        # it looks for its icon a while after it was opened
        self.settle(WAIT)
        return window

    def lora_tab(self, controller: Any, state: Any) -> Any:
        return self._framed(import_module("modules.ui.CtkLoraTabView").CtkLoraTabView, controller, state)

    def top_bar(self, controller: Any, state: Any) -> Any:
        nothing = lambda *_: None  # noqa: E731
        view = import_module("modules.ui.CtkTopBarView").CtkTopBarView
        return self._framed(view, controller, state, nothing, nothing, nothing)

    def _framed(self, view: Any, *args: Any) -> Any:
        frame = self.ctk.CTkFrame(self.root, corner_radius=0, fg_color="transparent")
        frame.grid(row=0, column=0, sticky="nsew")
        frame.grid_columnconfigure(0, weight=1)
        made = view(frame, *args)
        made.check_frame = frame
        self.settle(WAIT)
        return made

    def close(self, window: Any) -> None:
        getattr(window, "check_frame", window).destroy()
        self.settle()

    def resize(self, window: Any) -> None:
        window.geometry(f"{SIZE[0]}x{SIZE[1]}+0+0")
        self.settle(WAIT)

    def picture(self, window: Any, path: Path) -> None:
        from PIL import ImageGrab

        self.settle(WAIT)
        shown = getattr(window, "check_frame", window).winfo_toplevel()
        left, top = shown.winfo_rootx(), shown.winfo_rooty()
        box = (left, top, left + shown.winfo_width(), top + shown.winfo_height())
        ImageGrab.grab(bbox=box, xdisplay=os.environ["DISPLAY"]).save(path)

    def press(self, made: Made) -> None:
        made.widget.toggle() if made.kind == "switch" else made.widget.invoke()
        self.settle()

    def choose(self, made: Made, value: str) -> None:
        made.widget._dropdown_callback(value)
        self.settle()

    def type(self, made: Made, text: str) -> None:
        entry = made.widget._entry
        entry.focus_force()
        self.settle()
        entry.event_generate("<Key-End>")
        entry.delete(0, "end")
        entry.insert(0, text)
        entry.event_generate("<Return>")
        self.settle()

    def shown(self, made: Made) -> Any:
        return bool(made.widget.get()) if made.kind == "switch" else made.widget.get()

    def is_marked(self, made: Made) -> bool:
        return made.widget.cget("border_color") == self.error

    def during_dialog(self, work: Callable[[Any], None]) -> None:
        """Runs work on the dialog that is opened next, and closes it."""

        def run() -> None:
            dialog = self.root.grab_current()
            try:
                work(dialog)
            finally:
                dialog.destroy()

        self.root.after(int(1000 * WAIT), run)

    def preset_menu(self, made: Any) -> list[tuple[str, Any]]:
        (menu,) = [child for child in made.winfo_children() if child.winfo_class() == "Menu"]
        return menu_of_tk(menu)

    def picture_of_menu(self, button: Any, title: str, path: Path) -> None:
        from PIL import ImageGrab

        (menu,) = [child for child in button.winfo_children() if child.winfo_class() == "Menu"]
        menu.post(button.winfo_rootx(), button.winfo_rooty() + button.winfo_height())
        self.settle(WAIT)
        ImageGrab.grab(xdisplay=os.environ["DISPLAY"]).crop((0, 0, 700, 900)).save(path)
        menu.unpost()
        self.settle()


def menu_of_tk(menu: Any) -> list[tuple[str, Any]]:
    """A menu as names, each with its entries or with what choosing it does."""
    found = []
    for place in range((menu.index("end") or 0) + 1):
        inner = menu.entrycget(place, "menu") if menu.type(place) == "cascade" else None
        action = menu_of_tk(menu.nametowidget(inner)) if inner else (lambda place=place: menu.invoke(place))
        found.append((menu.entrycget(place, "label"), action))
    return found


def start_display() -> tuple[subprocess.Popen[bytes], str]:
    """A virtual display that nobody else uses, and its name."""
    read, write = os.pipe()
    display = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", SCREEN, "-nolisten", "tcp"],
        pass_fds=(write,),
        stderr=subprocess.DEVNULL,
    )
    # a check that stops with an error leaves none behind
    atexit.register(end_display, display)
    os.close(write)
    with os.fdopen(read) as pipe:
        number = pipe.readline().strip()
    if not number:
        sys.exit("Xvfb did not start")
    return display, f":{number}"


def end_display(display: subprocess.Popen[bytes]) -> None:
    """Ends a display, if it has not ended."""
    display.terminate()
    display.wait()
