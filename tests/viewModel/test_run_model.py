"""What a window shows of a run and of a queue, from the events of runs that are played from a list."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

from modules.util.texts import ENGLISH, choose_language
from modules.viewModel import run_texts
from modules.viewModel.events_until import events_until
from modules.viewModel.RunModel import Bar, RunModel, duration
from modules.viewModel.RunQueue import RunQueue

import pytest

ROOT = Path(__file__).resolve().parents[2]


class PlayedRun:
    """Stands for a process: gives events in portions, then ends."""

    def __init__(self, portions: list[list[tuple[str, dict]]], outcome: tuple[str, str] = ("finished", "")) -> None:
        self.portions, self._outcome, self.running = portions, outcome, True

    def events(self) -> list[tuple[str, dict]]:
        return self.portions.pop(0) if self.portions else []

    def outcome(self) -> tuple[str, str]:
        return self._outcome


class Anything:
    """Has every attribute, each a word."""

    def __getattr__(self, name: str) -> "Anything":
        return self

    def __str__(self) -> str:
        return "x"


def step(number: int, loss: float, at: float) -> tuple[str, dict]:
    return "step", {"step": number, "total": 10, "epoch": number // 5, "loss": loss, "time": at,
                    "learning_rates": {"unet": 0.1 * number}}  # fmt: skip


def test_the_status_says_how_much_of_the_time_a_run_waits_for_data():
    def told(seconds, data_wait):
        kind, values = step(1, 1.0, 10.0)
        return kind, {**values, "seconds": seconds, "data_wait": data_wait}

    run, model = PlayedRun([[told(2.0, 0.01)], [told(1.0, 0.35)], [told(97.0, 0.0)]]), RunModel()
    model.follow(run)
    assert model.tick() and model.status == "Training, epoch 1"
    assert model.tick() and model.status == "Training, epoch 1 · 12% of the time waiting for data"
    assert model.tick() and model.status == "Training, epoch 1"


def test_everything_that_a_run_tells_is_shown():
    pictures = ["10 - dog/step-2.png", "2 - cat/old.png", "2 - cat/new.png"]
    run = PlayedRun(
        [
            [
                ("status", {"text": "Checking the images"}),
                ("progress", {"stage": "latents", "done": 3, "total": 4, "time": 0}),
            ],
            [
                step(1, 1.0, 10.0),
                step(2, 0.0, 12.0),
                ("validation", {"step": 2, "loss": 0.25}),
                ("warning", {"text": "hm"}),
            ],
            [
                *[("sample", {"step": 2, "path": f"/a/{name}"}) for name in pictures],
                ("sample", {"step": 0, "path": "/a/2 - cat/step-0.png"}),
            ],
        ]
    )
    model = RunModel()
    assert not model.tick() and model.state == "idle"
    model.follow(run)
    assert model.tick() and model.status == "Encoding images" == model.bars["latents"].title
    assert model.bars["latents"].share == 0.75 and model.log == ["Checking the images"]
    assert model.tick() and model.status == "Training, epoch 1"
    assert model.losses == [(1, 1.0), (2, 0.0)] and model.smoothed == [(1, 1.0), (2, 0.95)]
    assert model.validation == [(2, 0.25)] and model.rates == {"unet": [(1, 0.1), (2, 0.2)]}
    assert model.bars["training"].seconds_left == 16 and "16 s left" in model.bars["training"].text
    assert "warning: hm" in model.log
    model.tick()
    assert model.prompts() == ["2 - cat", "10 - dog"] and model.results == 4
    assert [picture.path.name for picture in model.pictures("2 - cat")] == ["step-0.png", "new.png"]
    run.running = False
    assert model.tick() and model.state == "ended" and model.outcome == "finished" and not model.tick()


def test_downloads_are_counted_in_bytes_and_their_names_are_left_alone():
    stage = "downloading transformer of black-forest-labs/FLUX.2-dev"
    run = PlayedRun(
        [
            [("progress", {"stage": stage, "done": done, "total": 64_400_000_000, "unit": "bytes", "time": 1.0})]
            for done in (0, 640_000, 32_200_000, 64_400_000_000)
        ]
    )
    model = RunModel()
    model.follow(run)
    shown = [(model.tick(), model.bars[stage].count.split(": ")[1])[1] for _ in range(4)]
    assert shown == [f"{done} of 64.40 GB" for done in ("0 KB", "640 KB", "32 MB", "64.40 GB")]
    assert model.status == f"D{stage[1:]}" == model.bars[stage].title


def test_what_a_run_tells_is_translated(tmp_path):
    try:
        assert choose_language("de") == ""
        model = RunModel()
        told = {
            "Checking the images": "Die Bilder werden geprüft",
            "Loading models/tiny sd": "models/tiny sd wird geladen",
            "Continuing C:\\a after step b after step 12": "C:\\a after step b wird nach Schritt 12 fortgesetzt",
            "A text that nobody knows.": "A text that nobody knows.",
        }
        model.follow(PlayedRun([[("status", {"text": text})] for text in told]))
        for text in told.values():
            assert model.tick() and model.status == text and model.log[-1].endswith(text)
        bars = {
            "downloading the configuration of a/b": "Die Konfiguration von a/b wird heruntergeladen",
            "downloading a of b.safetensors of a/b": "a of b.safetensors von a/b wird heruntergeladen",
        }
        model.follow(PlayedRun([[("progress", {"stage": stage, "done": 1, "total": 2})] for stage in bars]))
        for stage, text in bars.items():
            assert model.tick() and model.status == text and model.bars[stage].count == f"{text}: 1 von 2"
    finally:
        choose_language(ENGLISH)


def test_every_status_of_a_run_has_a_form():
    tree = ast.parse((ROOT / "modules/trainer/Trainer.py").read_text(encoding="utf-8"))
    emitted = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "emit" and node.args[0].value == "status"
    ]  # fmt: skip
    texts = [ast.unparse(keyword.value) for node in emitted for keyword in node.keywords]
    names = dict.fromkeys(("config", "backup", "self"), Anything())
    found = [eval(text, dict(names)) for text in texts if text != "text"]
    assert len(found) == 6
    for text in found:
        assert any(pattern.fullmatch(text) for _, pattern in run_texts._patterns()), text


def test_a_resumed_run_goes_on_from_what_led_to_its_backup(tmp_path):
    def tell(name: str, *events: tuple[str, dict]) -> None:
        (tmp_path / name).mkdir(parents=True)
        lines = [json.dumps({"kind": kind, **values}) for kind, values in events]
        (tmp_path / name / "events.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")

    first, second = tmp_path / "backup" / "b-2", tmp_path / "backup" / "b-4"
    tell(
        "run 1", step(1, 4.0, 0), ("sample", {"step": 1, "path": "/a/0 - cat/1.png"}), step(2, 3.0, 0),
        # the run goes on while a backup is written
        step(3, 9.0, 0), ("backup", {"step": 2, "path": str(first)}), step(4, 9.0, 0),
    )  # fmt: skip
    tell("run 3", step(1, 7.0, 0), ("backup", {"step": 1, "path": str(tmp_path / "elsewhere" / "b-4")}))
    tell(
        "queue/run 2", ("resumed", {"step": 2, "path": str(first)}), step(3, 2.0, 0),
        ("validation", {"step": 3, "loss": 2.5}), ("status", {"text": "x"}), step(4, 1.0, 0),
        ("backup", {"step": 4, "path": str(second)}), step(5, 9.0, 0),
    )  # fmt: skip
    model = RunModel(lambda backup: events_until(backup, [tmp_path, tmp_path / "queue"]))
    start = ("progress", {"stage": "training", "done": 4, "total": 10, "time": 0.0})
    resumed = ("resumed", {"step": 4, "path": str(second.parent / ".." / "backup" / "b-4")})
    run = PlayedRun([[resumed, start, step(5, 0.5, 300.0), step(6, 0.5, 301.0)]])
    model.follow(run)
    model.tick()
    assert model.losses == [(5, 0.5), (6, 0.5)], "the files are read beside it"
    end = time.monotonic() + 60
    while model.losses[0][0] == 5:
        assert time.monotonic() < end
        time.sleep(0.01)
        changed = model.tick()
    assert changed
    assert model.losses == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0), (5, 0.5), (6, 0.5)]
    assert [number for number, _ in model.smoothed] == [1, 2, 3, 4, 5, 6] and model.smoothed[1][1] == pytest.approx(
        3.95
    )
    assert model.validation == [(3, 2.5)] and [one.step for one in model.samples] == [1]
    assert model.rates["unet"][0] == (1, 0.1) and model.results == 0 and model.log == []
    assert model.rates["unet"][-1][0] == 6
    assert model.bars["training"].seconds_left == 4, "what came before its first step does not count"
    assert events_until(tmp_path / "backup" / "b-9", [tmp_path]) == [], "nobody knows of it"
    assert events_until(first, [tmp_path / "no such folder"]) == []
    # a file that says that a run led to itself
    tell("run 4", ("resumed", {"step": 2, "path": "/x"}), step(3, 2.0, 0), ("backup", {"step": 3, "path": "/x"}))
    assert [kind for kind, _ in events_until(Path("/x"), [tmp_path])] == ["step"]
    # files of others never do harm
    (tmp_path / "run 5").mkdir()
    odd = '{"kind": "backup", "path": null, "b-2": 1}\n[1, "b-2"]\n{"b-2": 2}\n{"kind": "backup", "path": "b-2'
    (tmp_path / "run 5" / "events.jsonl").write_text(odd, encoding="utf-8")
    assert len(events_until(first, [tmp_path])) == 3


def test_what_led_to_a_backup_and_cannot_be_read_is_said():
    def fail(backup: Path):
        raise OSError("the disk is gone")

    model = RunModel(fail)
    run = PlayedRun([[("resumed", {"step": 4, "path": "/b"}), step(5, 0.5, 10.0)]])
    model.follow(run)
    end = time.monotonic() + 60
    while not any("the disk is gone" in line for line in model.log):
        assert time.monotonic() < end
        model.tick()
    assert model.losses == [(5, 0.5)]


def test_a_failed_run_shows_its_reason():
    run = PlayedRun([[("ended", {"status": "failed"})]], ("failed", "learning_rate: found -1"))
    model = RunModel()
    model.follow(run)
    run.running = False
    assert model.tick() and model.status == "The run failed." and model.reason == "learning_rate: found -1"
    assert model.log[-1] == model.reason
    model.follow(PlayedRun([]))
    assert not model.log and model.state == "running"


def test_what_happens_once_before_the_first_step_says_nothing_of_the_rest():
    bar = Bar("Steps")
    for done, at in ((0, 0.0), (1, 10.0)):
        bar.report(done, 100, at)
    assert bar.seconds_left is None and bar.text == bar.count == "Steps: 1 of 100"
    bar.report(2, 100, 10.5)
    assert bar.seconds_left == 49
    # pauses come again, and count
    bar.report(3, 100, 12.0)
    assert bar.seconds_left == 97 and bar.text == "Steps: 3 of 100 · 1 min 37 s left"


def test_a_bar_that_begins_anew_forgets_its_pace():
    bar = Bar("Sampling")
    bar.report(1, 10, 0.0)
    bar.report(5, 10, 4.0)
    assert bar.seconds_left == 5
    bar.report(1, 10, 100.0)
    assert bar.seconds_left is None and bar.text == "Sampling: 1 of 10"


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_queue_runs_one_after_the_other_and_is_kept(tmp_path):
    started = []

    def start(config: Path, folder: Path) -> PlayedRun:
        if "broken" in config.read_text():
            raise PermissionError("no permission")
        started.append(PlayedRun([], ("failed", "why") if "bad" in config.read_text() else ("finished", "")))
        return started[-1]

    queue = RunQueue(tmp_path, start)
    for name in ("good", "bad", "broken", "last"):
        queue.add(name, {"name": name})
    queue.move(queue.items[3], -3)
    assert [item.name for item in RunQueue(tmp_path, start).items] == ["last", "good", "bad", "broken"]
    queue.remove(queue.items[0])
    assert queue.tick() is None, "it waits until it is told to start"
    queue.paused = False
    assert queue.tick() is started[0] and queue.tick() is None and queue.items[0].state == "running"
    with pytest.raises(ValueError, match="stop it first"):
        queue.remove(queue.items[0])
    started[0].running = False
    assert queue.tick() is started[1] and queue.items[0].state == "finished"
    started[1].running = False
    assert queue.tick() is None and queue.items[1].reason == "why"
    assert queue.items[2].state == "failed" and "no permission" in queue.items[2].reason
    assert queue.tick() is None and queue.paused
    assert [item.state for item in RunQueue(tmp_path, start).items] == ["finished", "failed", "failed"]


def test_a_damaged_queue_is_empty_and_a_lost_run_has_failed(tmp_path):
    (tmp_path / "queue.json").write_text("{")
    assert RunQueue(tmp_path).items == []
    queue = RunQueue(tmp_path, lambda config, folder: PlayedRun([]))
    queue.add("a", {})
    queue.paused = False
    queue.tick()
    # its process wrote nothing to its folder, as if the folder were gone
    again = RunQueue(tmp_path)
    assert again.items[0].state == "failed" and "gone" in again.items[0].reason and again.current is None


def test_a_window_needs_no_torch():
    code = "import sys, modules.viewModel.RunModel, modules.viewModel.RunQueue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
