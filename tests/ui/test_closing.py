"""What a window asks, keeps and tells when presets are saved and when it is closed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# stands for scripts/train.py: makes steps until it is asked to stop
RUN = """
import sys, time
from pathlib import Path
from modules.trainer.events import TrainCommands
from modules.run.RunControl import RunControl

commands = TrainCommands()
control = RunControl(Path(sys.argv[sys.argv.index("--control") + 1]), commands)
step = 0
while not commands.stop and step < 6000:
    step += 1
    control("step", {"step": step, "total": 6000, "epoch": 0, "loss": 1.0, "learning_rates": {}})
    time.sleep(0.01)
control.close("stopped" if commands.stop else "finished")
"""
CLOSE_WITH_A_RUN = """
import sys, time
from pathlib import Path
from modules.run.RunProcess import RunProcess
from modules.ui.App import App
from modules.ui.AskWindow import AskWindow

root, answers, asked = Path(sys.argv[1]), ["Cancel", sys.argv[2]], []
import modules.run.RunProcess as played
played.ROOT = root

class Answered:
    def __init__(self, parent, tools, title, text, buttons):
        asked.append(text)
        assert answers[0] in buttons
    def ask(self):
        return answers.pop(0)

import modules.ui.RunFollower
modules.ui.RunFollower.AskWindow = Answered
app = App(root)
app.update()
controller = app.runs.controller
for name in ("one", "two", "three"):
    controller.queue.add(name, {})
controller.start_queue()
end = time.monotonic() + 60
while not controller.model.losses:
    assert time.monotonic() < end, controller.model.reason
    app.update()
    time.sleep(0.01)
app.form.set_text("epochs", "7")

def close():
    app.tk.call(*app.protocol("WM_DELETE_WINDOW").split())

close()
print(bool(app.winfo_exists()), controller.running)
close()
try:
    app.winfo_exists()
except Exception:
    print("closed")
print(len(asked), asked[0].count("2 more configs wait; they begin when the window is open again"))
run = controller.model.run
end = time.monotonic() + (60 if sys.argv[2] == "Stop and save" else 1)
while run.running and time.monotonic() < end:
    time.sleep(0.05)
run.events()
print(run.running, run.ending and run.ending["status"])
run.kill()
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    """A window in a process of its own, as one process has but one."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of a window that was never opened."""
    (tmp_path / "training_presets").symlink_to(ROOT / "training_presets")
    return tmp_path


@pytest.mark.parametrize("answer", ["Stop and save", "Let it go on"])
def test_closing_asks_what_becomes_of_the_run(display, root, answer):
    (root / "scripts").mkdir()
    (root / "scripts" / "train.py").write_text(RUN, encoding="utf-8")
    window = start(CLOSE_WITH_A_RUN, root, answer)
    out, error = window.communicate(timeout=200)
    stops = answer == "Stop and save"
    assert out.splitlines() == [
        "True True", "closed", "2 1", "False stopped" if stops else "True None",
    ], error  # fmt: skip
    assert error == ""
    queue = json.loads((root / "ui_runs" / "queue" / "queue.json").read_text(encoding="utf-8"))
    assert queue["paused"] is stops
    kept = json.loads((root / "user_presets" / ".last_session.json").read_text(encoding="utf-8"))
    assert kept["epochs"] == 7


CLOSE_IN_TROUBLE = """
import sys
from pathlib import Path
from modules.ui.App import App
from modules.ui.AskWindow import AskWindow

app = App(Path(sys.argv[1]))
app.update()
app.form.set_text("learning_rate", "-1")
(Path(sys.argv[1]) / "user_presets").write_text("in the way")
answers = ["Stay", "", "Close"]
build = AskWindow.__init__

def __init__(self, parent, tools, title, text, buttons, *others, **named):
    build(self, parent, tools, title, text, buttons, *others, **named)
    print(" ".join(text.split()))
    # closing once more asks nothing more
    app.after(50, app.close)
    answer = answers.pop(0)
    app.after(150, lambda: self.give(answer) if answer else self.destroy())

AskWindow.__init__ = __init__
for _ in range(2):
    app.close()
    print(bool(app.winfo_exists()))
app.close()
"""


def test_what_cannot_be_kept_is_told_before_the_window_closes(display, root):
    window = start(CLOSE_IN_TROUBLE, root)
    out, error = window.communicate(timeout=100)
    assert window.returncode == 0 and error == ""
    lines = out.splitlines()
    assert lines[1::2] == ["True", "True"] and len(set(lines[::2])) == 1 and len(lines) == 5
    asked = lines[0]
    assert asked.startswith("Not everything can be kept:") and asked.endswith("Close all the same?")
    assert "user_presets: is a file, expected a folder" in asked
    assert "“Learning rate” keeps 0.002: found -1, expected a number of at least 0" in asked


def test_closing_waits_for_an_open_question(app):
    """Not even a name that is being typed is lost."""
    seen = []

    def close() -> None:
        app.close()
        seen.append((bool(app.winfo_exists()), bool(app.preset_actions.asking.winfo_exists())))
        app.preset_actions.asking.give("Cancel")

    app.after(50, close)
    app.preset_actions.save_as()
    assert seen == [(True, True)]


LEAVE = """
import sys, time
from pathlib import Path
from modules.ui.App import App

app = App(Path(sys.argv[1]))
app.update()
app.form.set_text("epochs", "7")
app.after(100, app.leave)
app.preset_actions.save_as()
print("nobody answered", flush=True)
app.mainloop()
"""


def test_the_system_need_not_answer_questions(display, root):
    window = start(LEAVE, root)
    out, error = window.communicate(timeout=100)
    assert (window.returncode, out, error) == (0, "nobody answered\n", "")
    assert json.loads((root / "user_presets" / ".last_session.json").read_text(encoding="utf-8"))["epochs"] == 7


OPEN = """
import sys
from pathlib import Path
from modules.ui.App import App

app = App(Path(sys.argv[1]))
app.update()
print(app.tabs.current, app.problems.news)
"""


def test_files_that_cannot_be_read_are_told_when_the_window_opens(display, root):
    (root / "secrets.json").write_text("{", encoding="utf-8")
    (root / "ui_runs" / "queue").mkdir(parents=True)
    queue = root / "ui_runs" / "queue" / "queue.json"
    queue.write_text("{", encoding="utf-8")
    out, error = start(OPEN, root).communicate(timeout=100)
    assert out.startswith("general ") and "secrets.json: is not valid JSON" in out, error
    assert "The queue could not be read" in out and "queue.json.broken-" in out
    queue.write_text('{"paused": false, "items": []}', encoding="utf-8")
    assert start(OPEN, root).communicate(timeout=100)[0].startswith("run "), "a queue that goes on is shown"


CRASH = """
import os, sys, time
from pathlib import Path
from modules.ui.App import App

app = App(Path(sys.argv[1]))
app.update()
app.form.set_text("epochs", "7")
app.form.set_text("secrets.huggingface_token", "hf_secret")
end = time.monotonic() + 30
while not (Path(sys.argv[1]) / "secrets.json").exists() and time.monotonic() < end:
    app.update()
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_a_crash_loses_nothing_that_has_settled(display, root):
    window = start(CRASH, root)
    window.communicate(timeout=100)
    assert window.returncode == -signal.SIGKILL
    assert json.loads((root / "user_presets" / ".last_session.json").read_text(encoding="utf-8"))["epochs"] == 7
    assert "hf_secret" in (root / "secrets.json").read_text(encoding="utf-8")


def answer(app, text: str) -> list[str]:
    """Gives an answer to the next question; the list gets what was asked."""
    from modules.ui.AskWindow import AskWindow

    asked: list[str] = []

    def give() -> None:
        window = next(child for child in app.winfo_children() if isinstance(child, AskWindow))
        labels = [child for child in window.winfo_children()[0].winfo_children() if child.winfo_class() == "TLabel"]
        asked.append(str(labels[0].cget("text")))
        window.give(text)

    app.after(100, give)
    return asked


@pytest.fixture
def own(app):
    """An own preset that is open, and gone when the test is over."""
    app.presets.save_as("mine", app.form.config, replace=True)
    app.preset_actions.open("mine (own)")
    yield app.presets.current
    if app.presets.find("mine (own)") is not None:
        app.presets.delete(app.presets.find("mine (own)"))


def test_half_typed_text_is_asked_about_and_told_at_saving(app, own):
    app.form.set_text("learning_rate", "1e-")
    asked = answer(app, "Cancel")
    app.preset_actions.open("Tiny/tiny OFT")
    assert "mine has been changed" in asked[0] and app.form.text("learning_rate") == "1e-"
    app.preset_actions.save()
    assert "mine is saved, but “Learning rate” keeps" in app.problems.news and "found" in app.problems.news


def test_what_another_program_changed_is_asked_about(app, own):
    own.path.write_text('{"epochs": 99}', encoding="utf-8")
    app.form.set_text("epochs", "8")
    asked = answer(app, "Cancel")
    app.preset_actions.save()
    assert "changed by another program" in asked[0] and own.path.read_text(encoding="utf-8") == '{"epochs": 99}'
    answer(app, "Replace")
    app.preset_actions.save()
    assert json.loads(own.path.read_text(encoding="utf-8"))["epochs"] == 8 and not app.session.is_modified


def test_a_built_in_preset_is_found_beside_an_own_one_of_its_name(app):
    own = app.presets.save_as("Tiny/tiny LoRA", app.form.config)
    try:
        for key in ("Tiny/tiny LoRA", "Tiny/tiny LoRA (own)"):
            app.top.preset.invoke()
            app.tools.popup.choose(key)
            assert app.presets.current.key == key
    finally:
        app.presets.delete(own)
    suggested = []

    def look() -> None:
        suggested.append(app.preset_actions.asking.entry.get())
        app.preset_actions.asking.give("Cancel")

    app.preset_actions.open("Tiny/tiny LoRA")
    app.after(50, look)
    app.preset_actions.save_as()
    assert suggested == ["Tiny/tiny LoRA mine"]


def test_an_own_preset_is_deleted_only_after_a_question(app, own):
    for text, stays in (("Cancel", True), ("Delete", False)):
        asked = answer(app, text)
        app.top.preset.invoke()
        app.tools.popup.choose(":delete")
        assert "Delete the preset mine?" in asked[0] and own.path.exists() is stays
    assert app.session.name == "no preset" and app.form.config.lora_rank == 32
    app.session.open(app.presets.find("Tiny/tiny LoRA"), pytest.fail)
    app.top.preset.invoke()
    labels = app.tools.popup.listbox.get(0, "end")
    app.tools.popup.close()
    assert labels and not any("Delete" in label for label in labels), "what came with the program stays"
