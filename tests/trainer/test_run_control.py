"""A run watched and asked from another process, as the GUI does it; with real processes and real kills.

All but the first are forked.
"""

import time
from pathlib import Path

from modules.run.RunControl import COMMANDS, RunControl
from modules.run.RunProcess import RunProcess
from modules.trainer.events import TrainCommands
from modules.util.config.errors import ConfigError
from modules.viewModel.RunController import backups_of

import psutil
import pytest

PATIENCE = 120.0


def wait(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)


@pytest.fixture
def started(mini_run, tmp_path):
    """started(**changes) -> a running process on the miniature; ended when the test is over."""
    runs = []

    def start(name: str = "control", resume: str = "", **changes) -> RunProcess:
        runs.append(RunProcess.start(mini_run.write(**changes), tmp_path / name, resume=resume))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


def follow(run: RunProcess, until: str) -> list[tuple[str, dict]]:
    """All events up to the first of a kind."""
    seen: list[tuple[str, dict]] = []

    def arrived() -> bool:
        seen.extend(run.events())
        return any(kind == until for kind, _ in seen) or not run.running

    wait(arrived, until)
    seen.extend(run.events())
    return seen


def test_a_run_tells_everything_and_its_end(started, mini_run):
    run = started()
    events = follow(run, "ended")
    kinds = [kind for kind, _ in events]
    assert kinds[-1] == "ended" and kinds[-2] == "finished"
    steps = [values for kind, values in events if kind == "step"]
    assert [values["step"] for values in steps] == list(range(1, 13)) and all("time" in values for values in steps)
    wait(lambda: not run.running, "the end")
    assert run.outcome() == ("finished", "") and mini_run.output.is_file()


@pytest.mark.usefixtures("forked_scripts")
def test_wishes_are_fulfilled_between_steps(started, mini_run):
    # more steps than it can make before it is stopped
    run = started(epochs=2000)
    follow(run, "step")
    for wish in ("backup", "save"):
        run.ask(wish)
    backup = next(values for kind, values in follow(run, "backup") if kind == "backup")
    run.ask("stop")
    events = follow(run, "ended")
    wait(lambda: not run.running, "the end")
    assert run.outcome() == ("stopped", "") and backups_of(mini_run.workspace)[-1][1] == Path(backup["path"])
    assert backup["path"].startswith(str(mini_run.workspace)) and len(mini_run.backups()) == 2
    assert mini_run.output.is_file() and list((mini_run.workspace / "save").iterdir())
    assert events[-1][1]["status"] == "stopped"
    with pytest.raises(ValueError, match="stop"):
        run.ask("dance")
    # the older of the two backups, though continue_last_backup is off
    first = int(Path(backup["path"]).name.split("-backup-")[1].split("-")[0])
    again = started("again", resume=backup["path"], epochs=2000)
    events = follow(again, "step")
    assert {"step": first, "path": backup["path"]} in [
        {key: values[key] for key in ("step", "path")} for kind, values in events if kind == "resumed"
    ]
    assert next(values for kind, values in events if kind == "step")["step"] == first + 1
    again.ask("stop")
    wait(lambda: not again.running, "the end")


@pytest.mark.usefixtures("forked_scripts")
def test_a_backup_that_is_none_is_refused(started, tmp_path):
    run = started(resume=str(tmp_path))
    follow(run, "ended")
    wait(lambda: not run.running, "the end")
    status, reason = run.outcome()
    assert status == "failed" and str(tmp_path) in reason and "backup.json is missing" in reason


@pytest.mark.usefixtures("forked_scripts")
def test_a_run_that_is_killed_has_failed_and_others_find_it(started, tmp_path):
    run = started(epochs=2000)
    follow(run, "step")
    again = RunProcess.find(run.folder)
    assert again.running and any(kind == "step" for kind, _ in again.events())
    run.kill()
    assert not run.running and not again.running
    status, reason = run.outcome()
    assert status == "failed" and "SIGKILL" in reason and "memory" in reason
    assert again.outcome()[0] == "failed"
    assert RunProcess.find(tmp_path / "nowhere") is None
    with pytest.raises(FileExistsError, match="another run"):
        RunProcess.start(tmp_path / "config.json", run.folder)


@pytest.mark.usefixtures("forked_scripts")
def test_a_run_that_cannot_be_noted_is_not_left_alone(tmp_path, monkeypatch, mini_run):
    started = []

    def refuse(path, data) -> None:
        started.append(data["pid"])
        raise ConfigError("cannot be written: No space left on device", str(path))

    monkeypatch.setattr("modules.run.RunProcess.write_json", refuse)
    with pytest.raises(ConfigError, match="No space left"):
        RunProcess.start(mini_run.write(), tmp_path / "run")
    assert started and not psutil.pid_exists(started[0])


def test_a_wrong_config_is_told_in_words(started):
    run = started(learning_rate=-1.0)
    follow(run, "ended")
    wait(lambda: not run.running, "the end")
    status, reason = run.outcome()
    assert status == "failed" and "learning_rate" in reason and "at least 0" in reason
    assert any("learning_rate" in line for line in run.log())


def test_half_a_line_waits_for_its_end(tmp_path):
    commands = TrainCommands()
    control = RunControl(tmp_path, commands)
    wishes = tmp_path / COMMANDS
    wishes.write_text("sample\nnonsense\nsto")
    wait(lambda: commands.sample, "the sample")
    assert not commands.stop
    with wishes.open("a") as file:
        file.write("p\n")
    wait(lambda: commands.stop, "the stop")
    control("step", {"step": 1})
    control.close("finished")
    # a late event of another thread is no reason to fail
    control("step", {"step": 2})
    assert [kind for kind, _ in RunProcess(tmp_path).events()] == ["step", "ended"]
