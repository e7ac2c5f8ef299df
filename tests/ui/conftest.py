"""A virtual display, and one real window on it for all tests of a module."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from modules.viewModel.tools.all_tools import all_tools

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREEN = "1920x1080x24"


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """Starts Xvfb on a free display number, so that no test depends on a screen, or on what is open on it."""
    program = shutil.which("Xvfb")
    assert program, "the window is tested on a virtual display: install Xvfb (Debian, Ubuntu: apt install xvfb)"
    read, write = os.pipe()
    server = subprocess.Popen(
        [program, "-displayfd", str(write), "-screen", "0", SCREEN, "-nolisten", "tcp"], pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write)
    try:
        with os.fdopen(read) as numbers:
            name = f":{numbers.readline().strip()}"
        assert name != ":", "Xvfb ended at once"
        before = os.environ.get("DISPLAY")
        os.environ["DISPLAY"] = name
        yield name
        if before is None:
            del os.environ["DISPLAY"]
        else:
            os.environ["DISPLAY"] = before
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def ui_root(tmp_path_factory) -> Path:
    """A folder with the presets of the program, and room for what a window remembers."""
    root = tmp_path_factory.mktemp("window")
    (root / "training_presets").symlink_to(ROOT / "training_presets")
    return root


@pytest.fixture(scope="session")
def loaded_app(display, ui_root):
    """The window, with what the optimizers take."""
    # imported here, as tkinter looks for a display
    from modules.ui.App import App

    before = Path.cwd()
    os.chdir(ROOT)
    app = App(ui_root)
    app.catalog.load()
    wait_until(app, lambda: app.form.catalog is not None and app.form.checks is not None, 180)
    yield app
    app.destroy()
    os.chdir(before)


TOOLS = {tool.name: tool for tool in all_tools()}


@pytest.fixture
def app(loaded_app, monkeypatch):
    """The window as it is when it is opened for the first time."""
    monkeypatch.chdir(ROOT)
    loaded_app.tools.popup.close()
    loaded_app.top.search.clear()
    if loaded_app.optimizer_window is not None:
        loaded_app.optimizer_window.destroy()
    loaded_app.runs.controller.model.forget()
    if "run" in loaded_app.views:
        loaded_app.views["run"][1].news()
    loaded_app.session.open(loaded_app.presets.find("Tiny/tiny LoRA"), pytest.fail)
    for name, form in loaded_app.kept.get("forms of tools", {}).items():
        form.replace(TOOLS[name].form(loaded_app.form.config))
    loaded_app.show_view("basic")
    loaded_app.show_tab("general")
    loaded_app.problems.show(loaded_app.form.check())
    loaded_app.update()
    errors: list[BaseException] = []
    monkeypatch.setattr(loaded_app, "report_callback_exception", lambda kind, error, trace: errors.append(error))
    yield loaded_app
    # Tk only prints what goes wrong in its callbacks
    assert not errors, errors
    assert not forsaken(loaded_app), "these calls outlive their widgets, and Tk may give their names to other commands"


def forsaken(app) -> list[str]:
    """The calls that wait for their time although the command behind them is gone."""
    call = app.tk.call
    scripts = [app.tk.splitlist(call("after", "info", one))[0] for one in app.tk.splitlist(call("after", "info"))]
    return [script for script in scripts if not call("info", "commands", app.tk.splitlist(script)[0])]


def wait_until(app, done: Callable[[], bool], seconds: float = 60) -> None:
    """Lets the window work until something is so."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        app.update()
        time.sleep(0.005)


@pytest.fixture
def until():
    """until(app, done): lets the window work until something is so."""
    return wait_until


@pytest.fixture
def answer(app):
    """answer(text, action): does something, and answers the question that it leads to; returns the question."""
    # imported here, as tkinter looks for a display
    from modules.ui.AskWindow import AskWindow

    def act(text: str, action) -> str:
        asked = []

        def give() -> None:
            found = [one for owner in (app, *app.winfo_children()) for one in owner.winfo_children()]
            for window in found:
                if isinstance(window, AskWindow):
                    asked.append(" ".join(str(label.cget("text")) for label in labels(window)))
                    window.give(text)
                    return
            app.after(50, give)

        waiting = app.after(50, give)
        action()
        app.update()
        if not asked:
            app.after_cancel(waiting)
        assert len(asked) == 1, "there was no question"
        return asked[0]

    return act


def labels(widget) -> list:
    """All labels in a window."""
    from tkinter import ttk

    inner = [label for child in widget.winfo_children() for label in labels(child)]
    return [*inner, widget] if isinstance(widget, ttk.Label) else inner


@pytest.fixture
def user():
    """A person at the window."""
    return User()


class User:
    """What a person does with a control."""

    def set(self, row, text: str) -> None:
        """Types, switches or chooses `text` in a row of a form."""
        self.use(row.control, text)

    def use(self, control, text: str) -> None:
        """The same with a control."""
        from modules.ui.EntryControl import EntryControl
        from modules.ui.SwitchControl import SwitchControl

        if isinstance(control, EntryControl):
            control.entry.delete(0, "end")
            # key by key: what stands in the field must not change under the hands
            for count, key in enumerate(text, 1):
                control.entry.insert("insert", key)
                control.entry.update()
                assert control.entry.get() == text[:count]
        elif isinstance(control, SwitchControl):
            assert "disabled" not in control.switch.state()
            if control.shown() != text:
                control.switch.invoke()
        else:
            control.button.invoke()
            control.tools.popup.choose(text)
            assert not control.tools.popup.is_open
