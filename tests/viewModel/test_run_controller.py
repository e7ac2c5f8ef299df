"""What a window does with runs, with processes that only tell that they train: no model is loaded."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from modules.run.RunProcess import RunProcess
from modules.util.config.errors import ConfigError
from modules.viewModel.RunController import RunController, backups_of
from modules.viewModel.RunModel import RunModel

import pytest

ROOT = Path(__file__).resolve().parents[2]
# stands for scripts/train.py: makes steps until it is asked to stop, or as many as the config says
SCRIPT = """
import argparse, json, time
from pathlib import Path
from modules.trainer.events import TrainCommands
from modules.run.RunControl import RunControl

parser = argparse.ArgumentParser()
for name in ("--config-path", "--control", "--secrets-path", "--resume"):
    parser.add_argument(name)
given = parser.parse_args()
config = json.loads(Path(given.config_path).read_text())
commands = TrainCommands()
control = RunControl(Path(given.control), commands)
while (wait := config.get("wait_for")) and not Path(wait).exists():
    time.sleep(0.01)
token = json.loads(Path(given.secrets_path).read_text())["huggingface_token"] if given.secrets_path else ""
control("status", {"text": f"{len(token)} {given.resume}"})
step = 0
while not commands.stop and step < config.get("steps", 100000):
    step += 1
    control("step", {"step": step, "total": 10, "epoch": 0, "loss": 1.0, "learning_rates": {}})
    for wish in ("sample", "backup", "save"):
        if getattr(commands, wish):
            setattr(commands, wish, False)
            control("status", {"text": f"did {wish}"})
    time.sleep(0.01)
control.close("stopped" if commands.stop else "finished")
"""


@pytest.fixture(autouse=True)
def played(tmp_path, monkeypatch):
    """Runs are played by the script above."""
    root = tmp_path / "program"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "train.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr("modules.run.RunProcess.ROOT", root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def open_window(tmp_path):
    """open_window() -> what a window has when it is opened; nothing runs any more when the test is over."""
    opened = []

    def make() -> RunController:
        opened.append(RunController(tmp_path / "runs"))
        return opened[-1]

    yield make
    for controller in opened:
        controller.pause_queue()
        controller.kill()


def follow(controller: RunController, done) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, (controller.model.state, controller.model.reason)
        controller.tick()
        time.sleep(0.01)


def test_a_run_gets_what_is_shown_and_does_what_it_is_asked(open_window):
    controller = open_window()
    controller.ask("stop")
    controller.kill()
    assert controller.tick() is False and controller.model.state == "idle", "nothing runs that could be asked"
    config = {"epochs": 3, "name": "ä"}
    controller.start(config, resume="a/backup")
    model, folder = controller.model, controller.model.run.folder
    assert controller.running and json.loads((folder / "config.json").read_text("utf-8")) == config
    with pytest.raises(RuntimeError, match="goes on already"):
        controller.start(config)
    follow(controller, lambda: model.losses)
    assert model.log[0] == "0 a/backup"
    for wish in ("sample", "backup", "save"):
        controller.ask(wish)
        follow(controller, lambda wish=wish: f"did {wish}" in model.log)
        assert controller.running
    controller.ask("stop")
    follow(controller, lambda: not controller.running)
    assert (model.state, model.outcome, model.status) == ("ended", "stopped", "Stopped.")
    controller.start({"steps": 1})
    assert model.run.folder != folder and not model.losses
    follow(controller, lambda: not controller.running)
    assert model.outcome == "finished" and model.reason == ""


def test_a_run_that_is_killed_has_failed(open_window):
    controller = open_window()
    controller.start({})
    controller.kill()
    follow(controller, lambda: not controller.running)
    assert controller.model.outcome == "failed" and "SIGKILL" in controller.model.reason
    assert controller.model.line.startswith("The run failed. · The run was ended from outside (SIGKILL)")


def test_what_cannot_be_started_is_told(tmp_path, open_window):
    controller = open_window()
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(OSError, match="runs"):
        controller.start({})
    assert not controller.running


def test_tokens_are_for_the_run_alone_and_gone_once_it_has_read_them(tmp_path, open_window):
    controller, go = open_window(), tmp_path / "go"
    controller.start({"wait_for": str(go)}, {"huggingface_token": "hf_secret"})
    path = controller.model.run.folder / "secrets.json"
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600
    assert "hf_secret" not in (path.parent / "config.json").read_text()
    again = open_window()
    controller.tick()
    assert again.running and path.exists(), "another window leaves them to a run that has not read them"
    go.touch()
    follow(controller, lambda: controller.model.log)
    assert controller.model.log == ["9 None"] and controller.running and not path.exists()
    controller.kill()


def test_tokens_of_runs_that_ended_unseen_are_removed(open_window):
    controller = open_window()
    controller.start({"steps": 1}, {"huggingface_token": "hf_secret"})
    run = controller.model.run
    run._process.wait()
    assert (run.folder / "secrets.json").exists()
    assert not open_window().running and not (run.folder / "secrets.json").exists()


def test_a_run_that_goes_on_is_found_again(open_window):
    controller = open_window()
    controller.start({})
    follow(controller, lambda: controller.model.losses)
    again = open_window()
    assert again.running and again.model.run.folder == controller.model.run.folder
    again.tick()
    assert again.model.losses[0][0] == 1, "from its first event"
    with pytest.raises(RuntimeError, match="goes on already"):
        again.start({})
    again.ask("stop")
    follow(again, lambda: not again.running)
    assert again.model.outcome == "stopped"
    assert open_window().model.state == "idle", "what has ended is not shown again"


def test_of_runs_of_the_same_second_the_last_is_found(open_window, tmp_path):
    controller = open_window()
    for number in ("", "-2", "-9", "-10"):
        folder = tmp_path / "runs" / f"run 2026-01-01_10-00-00{number}"
        folder.mkdir(parents=True)
        config = folder / "config.json"
        config.write_text('{"steps": 1}' if number != "-10" else "{}")
        run = RunProcess.start(config, folder)
        if number != "-10":
            run._process.wait()
    again = open_window()
    assert again.running and again.model.run.folder.name.endswith("-10")
    assert not controller.running


def test_the_queue_waits_for_the_run_and_goes_on_to_its_end(open_window):
    controller = open_window()
    items = [controller.queue.add(name, {"steps": 3}) for name in ("one", "two", "three")]
    controller.secrets = {"huggingface_token": "hf"}
    controller.start({})
    controller.start_queue()
    follow(controller, lambda: controller.model.losses)
    assert {item.state for item in items} == {"waiting"}
    controller.ask("stop")
    follow(controller, lambda: items[0].state == "running")
    assert controller.model.run is controller.queue.current and controller.running
    follow(controller, lambda: items[0].state == "finished")
    assert controller.model.run.folder.parent == controller.queue.folder
    controller.pause_queue()
    follow(controller, lambda: controller.queue.current is None)
    assert [item.state for item in items] == ["finished", "finished", "waiting"]
    controller.tick()
    assert items[2].state == "waiting" and not controller.running
    controller.start_queue()
    follow(controller, lambda: controller.queue.paused)
    assert [item.state for item in items] == ["finished"] * 3 and controller.model.log[0].startswith("2 ")
    assert not list(controller.queue.folder.glob("run */secrets.json"))


def test_tokens_of_a_run_that_cannot_be_started_are_gone(open_window, monkeypatch):
    controller, seen = open_window(), []

    def fail(config: Path, folder: Path, secrets: Path | None, **others) -> RunProcess:
        seen.append(secrets.read_text(encoding="utf-8"))
        raise OSError("no process")

    monkeypatch.setattr(RunProcess, "start", fail)
    with pytest.raises(OSError, match="no process"):
        controller.start({}, {"huggingface_token": "hf_secret"})
    controller.queue.add("one", {})
    controller.secrets = {"huggingface_token": "hf_secret"}
    controller.start_queue()
    controller.tick()
    assert controller.queue.items[0].reason == "no process" and len(seen) == 2 and "hf_secret" in seen[1]
    assert not list(controller.folder.rglob("*secrets*"))


def start_two(controller: RunController) -> None:
    """Two configs in the queue, of which the first trains."""
    for name in ("one", "two"):
        controller.queue.add(name, {})
    controller.start_queue()
    follow(controller, lambda: controller.running and controller.model.losses)


def test_who_stops_a_run_does_not_wait_for_the_next(open_window):
    controller = open_window()
    assert controller.request("stop") == "" and not controller.owes_answer, "nothing runs"
    assert "begins" not in controller.closing_question
    start_two(controller)
    assert "One more config waits; it begins" in controller.closing_question
    controller.queue.add("three", {})
    assert "2 more configs wait; they begin" in controller.closing_question
    assert controller.request("save").startswith("Asked") and controller.owes_answer and not controller.queue.paused
    controller.model.results += 1
    assert not controller.owes_answer
    assert "the queue is paused" in controller.request("stop") and controller.queue.paused
    assert "wait" not in controller.closing_question.split("without the window")[1]
    follow(controller, lambda: not controller.running)
    assert [item.state for item in controller.queue.items] == ["stopped", "waiting", "waiting"]
    assert not controller.owes_answer


def test_how_the_queue_stands(open_window):
    controller = open_window()
    queue = controller.queue
    assert controller.queue_note.startswith("Nothing is queued") and not queue.can_toggle and not queue.done
    first, second = (queue.add(name, {"steps": 1}) for name in ("one", "two"))
    assert controller.queue_note == "" and queue.can_toggle and queue.waiting == 2
    assert [queue.can_move(first, -1), queue.can_move(first, 1), queue.can_move(second, 1)] == [False, True, False]
    controller.start({})
    controller.start_queue()
    assert controller.queue_note == "Begins when the present run has ended."
    controller.ask("stop")
    follow(controller, lambda: queue.current is not None)
    assert controller.queue_note == f"{queue.waiting} waiting" and queue.can_toggle
    controller.pause_queue()
    assert controller.queue_note == "The queue is paused."
    follow(controller, lambda: not controller.running)
    assert queue.done == [first] and queue.waiting == 1
    queue.clear()
    assert queue.items == [second] and open_window().queue.items == [second]
    queue.trouble = "cannot be kept"
    assert controller.queue_note == "cannot be kept"


def test_a_queue_goes_on_when_the_window_is_open_again(open_window):
    controller = open_window()
    start_two(controller)
    again = open_window()
    assert again.running and not again.queue.paused
    again.ask("stop")
    follow(again, lambda: again.queue.items[1].state == "running")
    again.pause_queue()
    assert open_window().queue.paused, "a pause is kept, too"


def test_a_run_of_the_queue_is_found_again_and_the_rest_waits(open_window):
    controller = open_window()
    start_two(controller)
    controller.pause_queue()
    again = open_window()
    assert again.running and again.queue.paused
    assert [item.state for item in again.queue.items] == ["running", "waiting"]
    again.ask("stop")
    # its process lives on for a moment after it has told its end
    follow(again, lambda: again.queue.current is None and not again.running)
    assert [item.state for item in again.queue.items] == ["stopped", "waiting"]


def test_what_cannot_be_started_does_not_stop_the_queue(open_window, monkeypatch):
    controller = open_window()
    items = [controller.queue.add(name, {"steps": 1}) for name in ("one", "two")]
    start, tried = RunProcess.start, []

    def start_second(config: Path, folder: Path, secrets: Path | None, resume: str) -> RunProcess:
        tried.append(config)
        if len(tried) == 1:
            raise ConfigError("cannot be written: no space left", "process.json")
        return start(config, folder, secrets, resume=resume)

    monkeypatch.setattr(RunProcess, "start", start_second)
    controller.start_queue()
    follow(controller, lambda: controller.queue.paused)
    assert [item.state for item in items] == ["failed", "finished"] and "no space left" in items[0].reason
    assert tried[1] == Path(items[1].folder) / "config.json", "what comes after a run reads its config there"


def test_a_list_that_cannot_be_kept_is_told_and_runs_all_the_same(open_window):
    controller = open_window()
    items = [controller.queue.add(name, {"steps": 1}) for name in ("one", "two")]
    (controller.queue.folder / "queue.json").unlink()
    (controller.queue.folder / "queue.json").mkdir()
    controller.start_queue()
    follow(controller, lambda: controller.queue.paused)
    assert [item.state for item in items] == ["finished", "finished"] and "queue.json" in controller.queue.trouble
    (controller.queue.folder / "queue.json").rmdir()
    controller.queue.move(items[0], 1)
    assert controller.queue.trouble == "" and (controller.queue.folder / "queue.json").is_file()


def test_a_list_that_cannot_be_read_is_put_aside(open_window):
    queue = open_window().queue
    for name in ("one", "two"):
        queue.add(name, {})
    path = queue.folder / "queue.json"
    whole = path.read_text(encoding="utf-8")
    broken = ["", "null", '{"items": 5}', '["one"]', '{"items": [{"name": "one"}]}', whole.replace('"one"', "1"), "["]
    for text in broken:
        path.write_text(text, encoding="utf-8")
        queue = open_window().queue
        assert queue.items == [] and queue.paused and not path.exists(), text
        (aside,) = queue.folder.glob("queue.json.broken-*")
        assert "could not be read" in queue.trouble and str(aside) in queue.trouble
        assert aside.read_text(encoding="utf-8") == text
        queue.add("new", {})
        assert str(aside) in queue.trouble, "it is still to be told"
        aside.unlink()
    assert open_window().queue.trouble == ""


def test_a_list_that_cannot_be_put_aside_is_not_written_over(open_window, monkeypatch):
    queue = open_window().queue
    queue.add("one", {})
    path = queue.folder / "queue.json"
    path.write_text("[", encoding="utf-8")
    monkeypatch.setattr(Path, "rename", lambda self, target: open(self.parent))
    queue = open_window().queue
    queue.add("new", {})
    assert path.read_text(encoding="utf-8") == "[" and "nothing is kept" in queue.trouble
    assert [item.name for item in queue.items] == ["new"]


def test_lists_of_older_and_newer_programs_are_read(open_window):
    queue = open_window().queue
    items = [queue.add(name, {}) for name in ("one", "two")]
    path = queue.folder / "queue.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["paused"] is True
    newer = [{**entry, "priority": 3} for entry in data["items"]]
    for text in (data["items"], newer, {"items": newer, "of_tomorrow": 1}):
        path.write_text(json.dumps(text), encoding="utf-8")
        again = open_window().queue
        assert again.items == items and again.paused and again.trouble == ""


def test_backups_are_listed_with_the_newest_first(tmp_path):
    assert backups_of(tmp_path) == []
    names = ["2026-01-02_10-00-00-backup-6-1", "2026-01-02_10-00-00-backup-12-3", "2026-01-01_23-59-59-backup-100-25"]
    for name in [*names, ".unfinished-2026-01-03_10-00-00-backup-7-1", "notes"]:
        (tmp_path / "backup" / name).mkdir(parents=True)
    (tmp_path / "backup" / "2026-01-03_10-00-00-backup-8-2").write_text("a file")
    found = backups_of(tmp_path)
    assert [title for title, _ in found] == [
        "2026-01-02 10:00:00, step 12, epoch 3", "2026-01-02 10:00:00, step 6, epoch 1",
        "2026-01-01 23:59:59, step 100, epoch 25",
    ]  # fmt: skip
    assert [path.name for _, path in found] == [names[1], names[0], names[2]]


def test_pictures_of_averaged_and_other_weights_are_told_apart():
    model = RunModel()
    for name in ("step-000006.png", "step-000006-no-ema.png"):
        model._take("sample", {"step": 6, "path": f"/a/0 - cat/{name}"})
    assert model.prompts() == ["0 - cat", "0 - cat · no-ema"]
    assert [one.path.name for one in model.pictures("0 - cat")] == ["step-000006.png"]


def test_a_window_that_starts_runs_needs_no_torch():
    code = "import sys, modules.viewModel.RunController; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
