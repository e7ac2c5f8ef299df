"""The tab run, with runs of the miniature in processes of their own: start, samples, stop, resume, crash, queue.

They are forked; the run of a preset at the end is started as users start it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tkinter import font as tk_font

from modules.ui.RunView import MESSAGES
from modules.ui.Theme import COLORS
from modules.util.config.load import train_config_from_dict
from modules.viewModel.RunController import RunController, backups_of

import pytest
from safetensors.torch import load_file

LONG = 240


@pytest.fixture
def view(app, mini_run, monkeypatch, forked_scripts):
    """The tab, on a config of the miniature with samples and backups every six of its twelve steps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prompt = {"width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 1.0}
    samples = [{"prompt": "a red circle", **prompt}, {"prompt": "a blue square", **prompt}]
    options = mini_run.options(
        samples=samples, sample_after=6, sample_after_unit="STEP", backup_after=6, backup_after_unit="STEP"
    )
    app.form.replace(train_config_from_dict(options))
    with shown(app) as view:
        yield view


@contextmanager
def shown(app) -> Iterator:
    """The tab; afterwards nothing runs and nothing is queued."""
    controller = app.runs.controller
    app.show_tab("run")
    view = app.views["run"][1]
    view.show_foot(MESSAGES)
    try:
        yield view
    finally:
        controller.pause_queue()
        controller.kill()
        controller.tick()
        for item in list(controller.queue.items):
            controller.queue.remove(item)


def ended(controller):
    return lambda: controller.model.state == "ended"


def answer(app, text: str) -> None:
    """Gives an answer to the next question."""
    from modules.ui.AskWindow import AskWindow

    app.after(300, lambda: next(child for child in app.winfo_children() if isinstance(child, AskWindow)).give(text))


def test_a_run_trains_shows_samples_stops_and_is_resumed(app, view, until, mini_run):
    controller, model = app.runs.controller, app.runs.controller.model
    assert "disabled" in view.buttons["stop"].state() and "disabled" not in view.buttons["resume"].state()
    app.problems.start.invoke()
    assert controller.running and app.tabs.current == "run" and "disabled" in view.buttons["resume"].state()
    until(app, ended(controller), LONG)
    assert model.outcome == "finished", model.reason
    assert model.status == "Finished." == view.status.cget("text") and mini_run.output.is_file()
    assert [step for step, _ in model.losses] == list(range(1, 13)) and model.bars["training"].share == 1
    epoch = model.bars["epoch"]
    assert (epoch.title, epoch.done, epoch.total) == ("Epoch 3 of 3", 4, 4)

    until(app, lambda: view.losses.find_all() and "saved:" in view.log.text)
    check_what_comes_next(app, view, until, mini_run)
    assert [name[:4] for name in model.prompts()[:2]] == ["0 - ", "1 - "], model.prompts()
    assert [one.step for one in model.pictures(model.prompts()[0])] == [0, 6, 12]
    assert view.samples.picture.step == 12, "the newest is shown"
    view.samples.go(0)
    assert view.samples.picture.step == 0 and view.samples.slider.get() == 0
    view.samples.choose(model.prompts()[1])
    assert view.samples.picture == model.pictures(model.prompts()[1])[-1]

    backups = backups_of(mini_run.workspace)
    assert backups and "step 6" in backups[-1][0]
    before, losses = controller.model.run, controller.model.losses
    app.form.set_text("epochs", "400")
    view.buttons["resume"].invoke()
    app.tools.popup.choose(str(backups[-1][1]))
    until(app, lambda: len(controller.model.losses) > 6, LONG)
    assert controller.model.run.folder != before.folder, "another process"
    assert [step for step, _ in controller.model.losses[:7]] == [1, 2, 3, 4, 5, 6, 7], "it goes on after the backup"
    assert controller.model.losses[:6] == losses[:6]
    assert controller.model.pictures(controller.model.prompts()[0])[0].step == 0, "pictures, too"
    view.buttons["stop"].invoke()
    until(app, ended(controller), LONG)
    assert controller.model.outcome == "stopped" and view.status.cget("text") == "Stopped."
    last = controller.model.losses[-1][0]
    assert f"step {last}," in backups_of(mini_run.workspace)[0][0], "it backed up before it ended"


def check_what_comes_next(app, view, until, run) -> None:
    """Of the run's adapter: its workflow, its copy in ComfyUI, and the tools that begin with it."""
    bar, comfy = view.result, run.root / "ComfyUI"
    assert bar.winfo_manager() and all(button.winfo_manager() for button in bar.buttons.values())
    bar.buttons["ComfyUI workflow"].invoke()
    until(app, lambda: app.problems.news.startswith("Written"), LONG)
    workflow = json.loads((run.output.parent / "lora workflow.json").read_text(encoding="utf-8"))
    assert {"LoraLoaderModelOnly", "KSampler"} <= {node["type"] for node in workflow["nodes"]}
    answer(app, "Cancel")
    bar.buttons["ComfyUI workflow"].invoke()
    bar.buttons["Page of the run"].invoke()
    until(app, lambda: app.problems.news.startswith("Written") and "run.html" in app.problems.news, LONG)
    page = (run.output.parent / "lora run.html").read_text(encoding="utf-8")
    # 0, 6 and 12 of two prompts, and the grids of before and after
    assert page.count("data:image/jpeg") >= 6 and "lora.safetensors" in page and "<polyline" in page
    assert "lora_rank" in page and str(run.root) not in page.split("<h2>Messages")[0]

    app.settings.comfy = str(run.root)
    bar.buttons["Copy to ComfyUI …"].invoke()
    assert "expected the folder of ComfyUI" in app.problems.news and app.settings.comfy == ""
    loras = comfy / "models" / "loras"
    loras.mkdir(parents=True)
    app.settings.comfy = str(comfy)
    bar.buttons["Copy to ComfyUI …"].invoke()
    assert (loras / "lora.safetensors").read_bytes() == run.output.read_bytes()
    (loras / "lora.safetensors").write_bytes(b"another")
    answer(app, "Keep both")
    bar.buttons["Copy to ComfyUI …"].invoke()
    assert (loras / "lora.safetensors").read_bytes() == b"another"
    assert (loras / "lora-2.safetensors").read_bytes() == run.output.read_bytes()
    answer(app, "Replace it")
    bar.buttons["Copy to ComfyUI …"].invoke()
    assert sorted(path.name for path in loras.iterdir()) == ["lora-2.safetensors", "lora.safetensors"]
    assert (loras / "lora.safetensors").read_bytes() == run.output.read_bytes()

    for button, tool in (("Convert", "converter"), ("Try a prompt", "try a prompt")):
        bar.buttons[button].invoke()
        tools = app.views["tools"][1]
        assert app.tabs.current == "tools" and tools.tabs.current == tool
        assert tools.pages[tool].form.config.adapter == str(run.output)
    app.show_tab("run")


def test_a_crash_is_told_and_the_window_stays(app, view, until):
    controller = app.runs.controller
    view.start()
    os.kill(controller.model.run._process.pid, signal.SIGKILL)
    until(app, ended(controller), LONG)
    assert controller.model.outcome == "failed" and view.status.cget("text") == "The run failed."
    assert "SIGKILL" in view.reason.text and view.reason.winfo_manager()
    view.start()
    assert controller.running, "another one can be started"
    assert not view.reason.winfo_manager()


def test_invalid_input_starts_nothing(app, view, until):
    app.form.set_text("learning_rate", "-1")
    view.start()
    assert not app.runs.controller.running and "Not started: Learning rate: found -1" in app.problems.news
    assert "disabled" in app.problems.start.state()


def test_a_wrong_config_of_the_queue_fails_and_the_queue_goes_on(app, view, until):
    controller, queue = app.runs.controller, view.queue
    for name in ("one", "two"):
        queue.add_as(name)
    # the queue keeps copies: what is changed now does not matter to them
    app.form.set_text("epochs", "77")
    assert all('"epochs": 3' in open(item.config).read() for item in controller.queue.items)
    queue.lines[1]["up"].invoke()
    assert [item.name for item in controller.queue.items] == ["two", "one"]
    queue.lines[1]["remove"].invoke()
    with open(controller.queue.items[0].config, "w") as file:
        file.write('{"learning_rate": -1}')
    queue.start_button.invoke()
    until(app, lambda: controller.queue.items[0].state == "failed", LONG)
    assert "learning_rate" in controller.queue.items[0].reason and controller.queue.paused
    queue.refresh()
    assert queue.lines[0]["state"].cget("text") == "failed"
    queue.clear_button.invoke()
    assert not controller.queue.items


def test_what_is_wished_for_is_done_while_the_run_goes_on(app, view, until, mini_run):
    # more steps than it can make before it is stopped
    for path, text in (("epochs", "4000"), ("sample_after_unit", "NEVER"), ("backup_after_unit", "NEVER")):
        assert app.form.set_text(path, text) == ""
    app.problems.start.invoke()
    controller, model = app.runs.controller, app.runs.controller.model
    until(app, lambda: model.losses, LONG)
    assert view.samples.picture is None and not backups_of(mini_run.workspace)

    view.buttons["sample"].invoke()
    assert "Asked" in app.problems.news
    until(app, lambda: view.samples.picture is not None, LONG)
    first = view.samples.picture
    assert first.step > 0 and first.path.is_file()
    # they come one by one
    until(app, lambda: len(model.prompts()) == 2)
    until(app, lambda: str(view.samples._image.cget("image")))
    view.buttons["sample"].invoke()
    until(app, lambda: view.samples.picture.step > first.step, LONG)
    assert view.samples.picture.path != first.path and view.samples.slider.get() == 1, "it follows the newest"

    view.buttons["backup"].invoke()
    until(app, lambda: backups_of(mini_run.workspace), LONG)
    view.buttons["save"].invoke()
    saves = mini_run.workspace / "save"
    # a name that begins with a dot is a file that is still being written
    until(app, lambda: list(saves.glob("[!.]*.safetensors")), LONG)
    assert load_file(next(saves.glob("[!.]*.safetensors"))) and not mini_run.output.exists()

    step = model.losses[-1][0]
    until(app, lambda: model.losses[-1][0] > step + 2, LONG)
    assert controller.running and "disabled" not in view.buttons["stop"].state()
    # the log is read later than the file is there
    until(app, lambda: any("saved: " in line for line in model.log), LONG)
    assert any(line.startswith("backup: ") for line in model.log)

    view.buttons["stop"].invoke()
    until(app, ended(controller), LONG)
    assert model.outcome == "stopped" and load_file(mini_run.output)
    assert "Asked" not in app.problems.news, "it is said only until it is done"
    view.buttons["resume"].invoke()
    titles = app.tools.popup.listbox.get(0, "end")
    app.tools.popup.close()
    assert len(titles) == 2 and all(", step " in title for title in titles), "the one asked for, and that of the stop"


def test_a_queue_of_good_configs_runs_to_its_end(app, view, until, mini_run):
    controller, queue = app.runs.controller, view.queue
    outputs = [mini_run.root / "out" / f"{name}.safetensors" for name in ("one", "two")]
    for output in outputs:
        app.form.set_text("output_model_destination", str(output))
        queue.add_as(output.stem)
    app.form.set_text("output_model_destination", str(mini_run.output))
    items = controller.queue.items
    queue.start_button.invoke()
    until(app, lambda: items[0].state == "running")
    assert items[1].state == "waiting" and not outputs[1].exists()
    until(app, lambda: items[1].state == "running", LONG)
    assert items[0].state == "finished" and outputs[0].is_file(), items[0].reason
    assert controller.model.run is controller.queue.current, "the tab shows the one that runs"
    until(app, lambda: controller.queue.paused, LONG)
    assert [item.state for item in items] == ["finished", "finished"], items[1].reason
    assert [one["state"].cget("text") for one in queue.lines] == ["finished", "finished"]
    assert all(load_file(output) for output in outputs) and not mini_run.output.exists()
    assert "disabled" in queue.start_button.state()
    queue.clear_button.invoke()
    assert not controller.queue.items and not queue.lines


def test_stopping_a_run_of_the_queue_starts_no_other(app, view, until):
    controller, queue = app.runs.controller, view.queue
    app.form.set_text("epochs", "4000")
    for name in ("one", "two"):
        queue.add_as(name)
    queue.start_button.invoke()
    items = controller.queue.items
    until(app, lambda: items[0].state == "running" and controller.model.losses, LONG)
    view.buttons["stop"].invoke()
    assert "the queue is paused" in app.problems.news
    until(app, lambda: items[0].state == "stopped", LONG)
    assert items[1].state == "waiting" and controller.queue.paused and not controller.running


def test_a_low_window_has_room_for_the_plots(app, view, until):
    app.geometry("900x560+0+0")
    until(app, lambda: app.winfo_height() == 560)
    app.update()
    line = tk_font.nametofont(app.theme.font("mono"), app).metrics("linespace")
    assert view.log.box.winfo_height() >= 2 * line and view.losses.winfo_height() > 140
    assert not view.rates.winfo_ismapped()
    app.geometry("1280x800+0+0")
    until(app, lambda: app.winfo_height() == 800)
    app.update()
    assert view.log.box.winfo_height() >= 5 * line and view.rates.winfo_height() > 60


def test_closing_can_be_thought_better_of(app, view):
    view.start()
    folder = app.runs.controller.model.run.folder
    answer(app, "Cancel")
    assert app.runs.may_close() is False
    assert app.runs.controller.running and not (folder / "commands.txt").exists()


def test_closing_can_stop_the_run_which_is_backed_up(app, view, until, mini_run):
    controller = app.runs.controller
    app.form.set_text("epochs", "4000")
    view.start()
    until(app, lambda: controller.model.losses, LONG)
    view.queue.add_as("next")
    view.queue.start_button.invoke()
    answer(app, "Stop and save")
    assert app.runs.may_close() is True
    until(app, ended(controller), LONG)
    step = controller.model.losses[-1][0]
    assert controller.model.outcome == "stopped" and mini_run.output.is_file()
    assert f"step {step}," in backups_of(mini_run.workspace)[0][0]
    assert controller.queue.items[0].state == "waiting", "a window that closes starts nothing more"


REOPENED = """
import sys, time
from pathlib import Path
from modules.ui.App import App

app = App(Path(sys.argv[1]))
model, view = app.runs.controller.model, app.views["run"][1]

def wait(done):
    end = time.monotonic() + 200
    while not done():
        assert time.monotonic() < end
        app.update()
        time.sleep(0.005)

wait(lambda: model.losses)
print(app.tabs.current, "disabled" in view.buttons["stop"].state())
view.buttons["stop"].invoke()
wait(lambda: model.state == "ended")
print(model.losses[0][0], model.outcome)
"""


def test_a_run_goes_on_without_its_window_and_is_found_again(app, view, until, mini_run, ui_root):
    app.form.set_text("epochs", "4000")
    view.start()
    run = app.runs.controller.model.run
    until(app, lambda: app.runs.controller.model.losses, LONG)
    answer(app, "Let it go on")
    assert app.runs.may_close() is True
    assert run.running and not (run.folder / "commands.txt").exists()

    again = RunController(app.runs.controller.folder)
    assert again.running and again.model.run.folder == run.folder
    assert again.tick() and again.model.losses[0][0] == 1

    # a window in a process of its own, as one process has but one
    window = subprocess.run(
        [sys.executable, "-c", REOPENED, str(ui_root)], capture_output=True, text=True, check=False, timeout=LONG
    )
    assert window.stdout.split() == ["run", "False", "1", "stopped"], window.stderr
    assert mini_run.output.is_file() and len(backups_of(mini_run.workspace)) >= 1
    until(app, ended(app.runs.controller))
    assert not RunController(app.runs.controller.folder).running


def test_the_preset_trains_the_tiny_lora_to_the_end(app, until, user, tmp_path, monkeypatch):
    """As it comes with the program, but for one epoch, and with files in another place."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    app.preset_actions.open("Tiny/tiny LoRA")
    app.show_view("all")
    output = tmp_path / "lora.safetensors"
    changes = {
        "workspace_dir": tmp_path / "work", "cache_dir": tmp_path / "cache", "output_model_destination": output,
        "epochs": 1, "sample_after": 1,
    }  # fmt: skip
    for path, text in changes.items():
        app.guide.go_to(path)
        user.set(app.views[app.tabs.current][0].rows[path], str(text))
    samples = [{**one.to_dict(), "diffusion_steps": 4} for one in app.form.config.samples[:2]]
    app.form.set_value("samples", samples)
    until(app, lambda: "disabled" not in app.problems.start.state())
    assert app.session.title == "Tiny/tiny LoRA •"
    with shown(app) as view:
        model = app.runs.controller.model
        app.problems.start.invoke()
        assert app.runs.controller.running, app.problems.news
        written = json.loads((model.run.folder / "config.json").read_text(encoding="utf-8"))
        assert written == app.form.config.to_dict(), "the run gets what the window shows"
        until(app, ended(app.runs.controller), LONG)
        assert model.outcome == "finished", model.reason
        steps = model.losses[-1][0]
        assert [step for step, _ in model.losses] == list(range(1, steps + 1)) and steps > 1
        assert [step for step, _ in model.validation] == [0, steps]
        prompts = [name for name in model.prompts() if name[0].isdigit()]
        assert [name.split(" - ")[1] for name in prompts] == [one["prompt"] for one in samples]
        for prompt in prompts:
            view.samples.choose(prompt)
            assert view.samples.picture.step == steps
            app.update()
            last = pixels(view)
            view.samples.go(0)
            assert view.samples.picture.step == 0 and len(model.pictures(prompt)) == 2
            app.update()
            assert pixels(view) != last, "training changed the picture"
        tensors = load_file(output)
        assert any(name.startswith("lora_unet") for name in tensors)
        assert any(name.startswith("lora_te") for name in tensors)
        assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name)


def pixels(view) -> list:
    """What the viewer shows, by the label's picture in Tk."""
    photo = view.samples._photo
    assert photo is not None and str(view.samples._image.cget("image")) == str(photo)
    get = view.tk.call
    return [get(str(photo), "get", x, y) for y in range(0, photo.height(), 4) for x in range(0, photo.width(), 4)]


LONG_NAME = "a name that nobody would give to a config but that has to be shown all the same, " * 4
WHY = "found -1, expected a number of at least 0, " * 40


def test_what_is_long_can_be_read(app, view, until):
    app.geometry("1280x800+0+0")
    until(app, lambda: app.winfo_width() == 1280)
    queue, model = app.runs.controller.queue, app.runs.controller.model
    queue.add(LONG_NAME, {})
    queue.items[0].state, queue.items[0].reason = "failed", WHY
    view.show_foot("queue")
    view.queue.refresh()
    app.update()
    line = view.queue.lines[0]
    for name, whole in (("title", LONG_NAME), ("reason", WHY)):
        text = line[name].cget("text")
        assert text.endswith("…") and whole.startswith(text[:-1]) and len(text) > 30
        line[name].event_generate("<Enter>")
        until(app, lambda: app.tools.tooltip.text)
        assert app.tools.tooltip.text.startswith(whole)
        app.tools.tooltip.hide()
    edge = view.queue.winfo_rootx() + view.queue.winfo_width()
    assert line["remove"].winfo_rootx() + line["remove"].winfo_width() <= edge

    plots = view.losses.winfo_height()
    model.state, model.outcome, model.reason = "ended", "failed", f"{WHY}\n" * 30
    view.news()
    app.update()
    box = view.reason.box
    assert view.reason.text == model.reason and box.cget("wrap") == "word"
    assert box.winfo_height() == 5 * box.tk.call("font", "metrics", box.cget("font"), "-linespace")
    assert view.losses.winfo_height() > plots / 2, "a long reason leaves room for the rest"
    assert view.reason._bar.winfo_ismapped() and box.yview()[1] < 1
    model.reason = "short"
    view.news()
    app.update()
    assert not view.reason._bar.winfo_ismapped() and box.yview() == (0.0, 1.0)
    model.forget()
    view.news()
    assert not view.reason.winfo_manager()


def test_the_last_line_of_the_log_is_whole(app, view, until):
    model = app.runs.controller.model
    app.geometry("1280x800+0+0")
    until(app, lambda: app.winfo_width() == 1280)
    view.show_foot("messages")
    box = view.log.box

    def last_line() -> tuple[int, int]:
        """Where it ends, and where the box does."""
        app.update()
        _, top, _, high, _ = box.dlineinfo("end-1c")
        return top + high, box.winfo_height() - int(str(box.cget("pady")))

    model.log = [f"line {number}" for number in range(30)]
    view.show_foot("messages")
    bottom, room = last_line()
    assert bottom == room and box.get("end-1c linestart", "end-1c") == "line 29"
    assert box.dlineinfo("@0,0")[1] == int(str(box.cget("pady"))), "the first is whole, too"
    box.yview_moveto(0.2)
    app.update()
    reading = box.get("@0,0 linestart", "@0,0 lineend")
    model.log = [*model.log[3:], "line 30"]
    view.show_foot("messages")
    app.update()
    assert box.get("@0,0 linestart", "@0,0 lineend") == reading, "what is being read stays in its place"
    box.yview_moveto(1)
    app.update()
    model.log = [*model.log, "two\nlines", "line 31"]
    view.show_foot("messages")
    assert last_line() == (bottom, room)
    model.log = [*model.log[-2:], "line 32"]
    view.show_foot("messages")
    assert view.log.text == "two\nlines\nline 31\nline 32"
    model.forget()


def test_bars_end_where_the_card_does(app, view):
    from modules.viewModel.RunModel import Bar

    model = app.runs.controller.model
    for count in (1, 3, 2):
        model.state = "ended"
        model.bars = {str(number): Bar(f"bar {number}", 1, 2) for number in range(count)}
        view.news()
        app.update()
        assert len(view.bars) == count
        frame, last = view._bars, view.bars[-1][1]
        assert last.winfo_rootx() + last.winfo_width() == frame.winfo_rootx() + frame.winfo_width()
        wide = {bar.winfo_width() for _, bar in view.bars}
        assert max(wide) - min(wide) <= 1 and tuple(last.cget("bg_color")) == COLORS["card"]
    model.forget()
    view.news()


def test_all_of_it_is_light_or_dark_at_once(app, view, until):
    app.runs.controller.queue.add("one", {})
    view.show_foot("queue")
    view.queue.refresh()
    view.losses.show([])
    try:
        for theme in ("dark", "light"):
            app.show_theme(theme, 100)
            app.update_idletasks()
            dark, style = theme == "dark", app.theme._style
            card = COLORS["card"][dark]
            assert view.losses.cget("background") == card == view.rates.cget("background")
            assert view.losses.itemcget(view.losses.find_all()[0], "fill") == COLORS["text"][dark]
            assert view.samples._image.cget("background") == card == view.reason.box.cget("background")
            assert view.log.box.cget("background") == COLORS["field"][dark]
            frame = view.queue._list
            assert frame._canvas.cget("background") == card
            for widget in (frame, frame.inside, view.queue.lines[0]["title"]):
                assert style.lookup(widget.cget("style") or widget.winfo_class(), "background") == card
    finally:
        app.show_theme("light", 100)
