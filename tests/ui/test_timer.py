"""Calls that wait: once, for as long as their widget is there, and never somebody else's command."""

import re
import tkinter as tk

from tests.ui.conftest import ROOT, forsaken, wait_until

import pytest


@pytest.fixture
def label(app):
    label = tk.Label(app)
    yield label
    label.destroy()


def timer(label, calls):
    from modules.ui.Timer import Timer

    return Timer(label, lambda: calls.append(1))


def test_one_call_however_often_it_is_started(app, label):
    calls = []
    one = timer(label, calls)
    for _ in range(3):
        one.start(5)
    assert one.waits and not calls
    wait_until(app, lambda: not one.waits)
    app.after(30, lambda: calls.append("later"))
    wait_until(app, lambda: "later" in calls)
    assert calls == [1, "later"]


def test_stopped(app, label):
    calls = []
    one = timer(label, calls)
    one.start(0)
    one.stop()
    one.stop()
    app.after(20, lambda: calls.append("later"))
    wait_until(app, lambda: calls)
    assert calls == ["later"] and not one.waits


def test_a_widget_that_is_gone_is_not_called_and_leaves_no_name_behind(app, label):
    calls = []
    one = timer(label, calls)
    one.start(20)
    label.destroy()
    assert not forsaken(app)
    wait_until(app, lambda: not one.waits)
    assert not calls


def test_a_widget_s_own_call_is_forsaken(app, label):
    """What the check after each test of the window has to find."""
    waiting = label.after(10_000, lambda: None)
    assert not forsaken(app)
    label.destroy()
    assert len(forsaken(app)) == 1
    app.tk.call("after", "cancel", waiting)


def test_only_the_main_window_is_asked_to_wait():
    """Of what waits for so short a time that no test ends meanwhile, `forsaken` would not know."""
    # these speak to the main window itself
    known = {"Timer.py", "App.py", "RunFollower.py", "DropTargets.py"}
    files = [path for path in (ROOT / "modules" / "ui").glob("*.py") if path.name not in known]
    assert len(files) > 20
    found = [path.name for path in files if re.search(r"\.after(_idle)?\(", path.read_text(encoding="utf-8"))]
    assert not found, "use a Timer there"
