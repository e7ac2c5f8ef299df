"""Which runs are found, what is said of each, and what they have logged."""

import json
import os
import socket

from modules.viewModel.run_curves import LOSS, RATE, VALIDATION, run_curves
from modules.viewModel.run_data import Curve, read_run
from modules.viewModel.run_list import find_runs, find_workspaces
from modules.viewModel.run_summary import Summaries, summarize
from modules.viewModel.RunsModel import RunsModel, cells_of, order_of
from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish
from tests.viewModel.written_runs import write_events, write_record, write_session

import pytest


@pytest.fixture
def place(tmp_path):
    """A folder with what a window leaves behind, and workspaces."""
    (tmp_path / "ui_runs").mkdir()
    return tmp_path


def found(place, *folders, **more):
    return find_runs(place / "ui_runs", place, folders, Summaries(), **more)


def test_runs_of_the_window_of_its_queue_and_of_folders_are_listed_once(place):
    inside = place / "workspace" / "deep" / "ohwx"
    record = write_record(inside, peft_type="OFT_2")
    # two sessions of the window went on with one run
    for number, end in ((1, "stopped"), (2, "failed")):
        write_session(place / "ui_runs" / f"run 2030-01-0{number}_00-00-00", inside, record, 2e9 + number, end)
    write_session(place / "ui_runs" / "queue" / "run 2030-02-01_00-00-00", place / "nowhere", at=3e9, end="")
    write_record(place / "workspace" / "mine", at=5e8, state="stopped")
    queued = place / "queued.json"
    queued.write_text(json.dumps({"training_method": "FINE_TUNE"}), "utf-8")
    runs = found(place, place / "workspace", place / "gone", waiting=[("next", str(queued))])
    assert [(run.name, run.state) for run in runs] == [
        ("next", "waiting"), ("mine", "failed"), ("mine", "failed"), ("mine", "stopped"), ("gone", "gone"),
    ]  # fmt: skip
    waiting, broken, merged, stopped, _ = runs
    assert waiting.method == "Full fine-tuning" and waiting.config == queued
    assert "without a word" in broken.reason or "could not be started" in broken.reason
    assert merged.reason == "no room" and merged.events == (record / "events.jsonl",)
    assert merged.summary.steps == 30 and merged.summary.best == 1.0, "the record has all sessions"
    assert stopped.family == "SDXL" and stopped.method == "LoRA"
    assert order_of(broken, 7) == (False, 0.6) and cells_of(merged)[5:] == ("30", "0.0533", "1.0000")


def test_a_run_that_goes_on_is_told_from_one_that_broke_off(place):
    write_record(place / "one", state="")
    (run,) = found(place, place / "one")
    assert run.state == "failed" and "without a word" in run.reason
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": "now"}
    (place / "one" / "run-holder.json").write_text(json.dumps(holder), "utf-8")
    (run,) = found(place, place / "one")
    assert run.state == "running" and not run.reason


def test_a_workspace_from_before_there_were_records_is_a_run(place):
    backup = place / "old" / "backup" / "2020-01-01_00-00-00-backup-2-1"
    backup.mkdir(parents=True)
    report = {"finished": False, "steps": 2, "final_loss": 0.25, "validation": [{"step": 1, "loss": 0.5}]}
    (place / "old" / "run.json").write_text(json.dumps(report), "utf-8")
    (backup / "config.json").write_text(json.dumps({"training_method": "LORA", "peft_type": "LOHA"}), "utf-8")
    (backup / "progress.json").write_text(json.dumps({"losses": [0.5, 0.25], "validation": [[1, 0.5]]}), "utf-8")
    (run,) = found(place, place)
    assert (run.state, run.method, run.summary.loss, run.summary.best) == ("stopped", "LoHa", 0.25, 0.5)
    data = read_run(run.events, run.workspace)
    assert data.loss.values == [0.5, 0.25] and data.validation.steps == [1] and not data.knows_time


def test_folders_are_searched_so_deep_and_no_deeper(place):
    for parts in (("a",), ("b", "c"), ("b", "d", "e", "f")):
        (place.joinpath(*parts) / "record").mkdir(parents=True)
    (place / "a" / "samples" / "record").mkdir(parents=True)
    assert [path.name for path in find_workspaces(place)] == ["a", "c"]
    assert list(find_workspaces(place / "a")) == [place / "a"] and not list(find_workspaces(place / "none"))


def test_a_file_that_no_run_wrote_is_no_trouble(place):
    for text in (b"", b"{", b'{"kind": "scalars", "step": "x"}\n', b"\xff\xfe\n" * 5, b'{"kind": "begin"}\n'):
        file = place / "ui_runs" / "run 1" / "events.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text)
        (run,) = found(place)
        assert run.summary.steps == 0 and run.state == "failed"


def test_the_last_loss_is_a_mean_and_the_best_validation_is_found_anywhere():
    lines = [{"kind": "validation", "step": 0, "loss": 0.125}]
    lines += [{"kind": "step", "step": n, "total": 999, "loss": float(n > 980), "time": n} for n in range(1, 1000)]
    lines += [{"kind": "validation", "step": 999, "loss": float("nan")}]
    summary = summarize("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    assert (summary.steps, summary.total, summary.loss, summary.best) == (999, 999, 0.95, 0.125)


def test_what_a_later_session_repeats_counts_once(tmp_path):
    def scalars(step, loss):
        return {"kind": "scalars", "step": step, "values": {"loss/train": loss, "seconds/step": 60.0}}

    def drawn(step):
        return {"kind": "pictures", "step": step, "files": [f"samples/0 - x/step-{step:06d}.png"]}

    first = [{"kind": "begin", "step": 0, "total": 9}, *(scalars(step, 1.0) for step in (1, 2, 3)), drawn(2), drawn(3)]
    again = [{"kind": "begin", "step": 2, "total": 9}, scalars(3, 5.0), drawn(3)]
    write_events(tmp_path / "events.jsonl", [*first, *again])
    data = read_run([tmp_path / "events.jsonl"], tmp_path)
    assert data.loss.values == [1.0, 1.0, 5.0] and data.loss.seconds == [60.0, 120.0, 180.0]
    assert [picture.step for picture in data.pictures] == [2, 3]
    assert data.loss.points(by_time=True)[-1] == (3.0, 5.0)
    assert data.loss.points(smooth=True)[-1] == (3, pytest.approx(1.2))


def test_smoothing_gets_over_what_is_not_finite():
    curve = Curve([1, 2, 3], [0, 0, 0], [float("nan"), 1.0, 1.0])
    assert [value for _, value in curve.points(smooth=True)][1:] == [1.0, 1.0]


def test_curves_of_runs_of_one_name_are_told_apart(place):
    write_record(place / "a" / "same")
    write_record(place / "b" / "same", level=2.0)
    runs = [(run, read_run(run.events, run.workspace)) for run in found(place, place / "a", place / "b")]
    loss = run_curves(runs, LOSS, by_time=True, smooth=False)
    assert [line.name for line in loss] == ["same", "same (2)"] and loss[0].color != loss[1].color
    assert {line.points[0][1] for line in loss} == {1.0, 2.0} and loss[0].points[-1][0] == 1.0, "30 steps of 2 s"
    (dots, _), (rate, _) = (run_curves(runs, kind, False, True) for kind in (VALIDATION, RATE))
    assert dots.dots and len(dots.points) == 1 and rate.points[0] == (1, 1e-3)


def test_a_list_is_read_beside_the_window_and_remembers_where_runs_were(place):
    write_record(place / "elsewhere" / "far")
    write_session(place / "ui_runs" / "run 1", place / "elsewhere" / "far")
    for number in range(20):
        write_record(place / "workspace" / f"run {number:02d}", at=1e9 + number, steps=2)
    worker, told, added, remembered = Worker(), [], [], [str(place / "lost")]
    model = RunsModel(
        worker, place / "ui_runs", place, added, remembered, lambda: [], lambda: told.append(len(model.rows))
    )
    model.refresh()
    assert not model.rows and not model.loaded, "nothing is read on the window's thread"
    finish(worker, lambda: model.loaded)
    assert told[-1] == 22 and model.rows[-1].state == "gone"
    assert remembered == [str(place / "elsewhere" / "far"), str(place / "lost")]
    model.choose([model.rows[-1].key])
    assert model.can_forget()
    model.forget()
    finish(worker)
    assert remembered == [str(place / "elsewhere" / "far")] and model.rows[-1].state != "gone"
    model.add_folder(place / "elsewhere")
    finish(worker)
    assert added == [str(place / "elsewhere")] and len(model.rows) == 22, "the record there is another run"
    model.choose([run.key for run in model.rows[:12]])
    finish(worker)
    assert len(model.compared()) == 8 and not model.reads
    write_record(place / "workspace" / "run 19", at=1e9 + 19, steps=7)
    model.refresh()
    finish(worker)
    assert [len(data.loss.steps) for run, data in model.compared() if run.name == "run 19"] == [7], "it has grown"
