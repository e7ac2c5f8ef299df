"""The tab run, with runs of the miniature in processes of their own: start, samples, stop, resume, crash, queue."""

import os
import signal

from modules.util.config.load import train_config_from_dict
from modules.viewModel.RunController import backups_of

import pytest

LONG = 120


@pytest.fixture
def view(app, mini_run, monkeypatch):
    """The tab, on a config of the miniature with samples and backups every six of its twelve steps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prompt = {"width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 1.0}
    samples = [{"prompt": "a red circle", **prompt}, {"prompt": "a blue square", **prompt}]
    options = mini_run.options(
        samples=samples, sample_after=6, sample_after_unit="STEP", backup_after=6, backup_after_unit="STEP"
    )
    app.form.replace(train_config_from_dict(options))
    app.show_tab("run")
    yield app.views["run"][1]
    controller = app.runs.controller
    controller.pause_queue()
    controller.kill()
    controller.tick()
    for item in list(controller.queue.items):
        controller.queue.remove(item)


def ended(controller):
    return lambda: controller.model.state == "ended"


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
    assert [name[:4] for name in model.prompts()[:2]] == ["0 - ", "1 - "], model.prompts()
    assert [one.step for one in model.pictures(model.prompts()[0])] == [0, 6, 12]
    assert view.samples.picture.step == 12, "the newest is shown"
    view.samples.go(0)
    assert view.samples.picture.step == 0 and view.samples.slider.get() == 0
    view.samples.choose(model.prompts()[1])
    assert view.samples.picture == model.pictures(model.prompts()[1])[-1]

    backups = backups_of(mini_run.workspace)
    assert backups and "step 6" in backups[-1][0]
    app.form.set_text("epochs", "400")
    view.buttons["resume"].invoke()
    app.tools.popup.choose(str(backups[-1][1]))
    until(app, lambda: controller.model.losses, LONG)
    assert controller.model.losses[0][0] == 7, "it goes on after the backup"
    view.buttons["stop"].invoke()
    until(app, ended(controller), LONG)
    assert controller.model.outcome == "stopped" and view.status.cget("text") == "Stopped."
    last = controller.model.losses[-1][0]
    assert f"step {last}," in backups_of(mini_run.workspace)[0][0], "it backed up before it ended"


def test_a_crash_is_told_and_the_window_stays(app, view, until):
    controller = app.runs.controller
    view.start()
    os.kill(controller.model.run._process.pid, signal.SIGKILL)
    until(app, ended(controller), LONG)
    assert controller.model.outcome == "failed" and view.status.cget("text") == "The run failed."
    assert "SIGKILL" in view.reason.cget("text") and view.reason.winfo_manager()
    view.start()
    assert controller.running, "another one can be started"
    assert not view.reason.winfo_manager()


def test_invalid_input_starts_nothing(app, view, until):
    app.form.set_text("learning_rate", "-1")
    view.start()
    assert not app.runs.controller.running and "learning_rate" in app.problems.news
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


@pytest.mark.parametrize(("answer", "closes", "asked"), [("Cancel", False, False), ("Stop and save", True, True)])
def test_closing_asks_what_becomes_of_the_run(app, view, answer, closes, asked):
    from modules.ui.AskWindow import AskWindow

    view.start()
    folder = app.runs.controller.model.run.folder

    def give() -> None:
        next(child for child in app.winfo_children() if isinstance(child, AskWindow)).give(answer)

    app.after(300, give)
    assert app.runs.may_close() is closes
    assert (folder / "commands.txt").exists() is asked
