import json
import os

from modules.util.config.load import train_config_from_dict
from modules.viewModel import StepCount as step_count
from modules.viewModel.ExactSteps import ImageSizes
from modules.viewModel.StepCount import StepCount
from modules.viewModel.StepTime import StepTime, card_of, last_step_time
from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish

from PIL import Image


def test_steps_follow_images_and_options(tmp_path, monkeypatch):
    for name, count in (("cats", 7), ("dogs", 3), ("checked", 5)):
        (tmp_path / name).mkdir()
        for index in range(count):
            (tmp_path / name / f"{index}.png").touch()
    config = train_config_from_dict({
        "batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 6, "concepts": [
            {"path": str(tmp_path / "cats")}, {"path": str(tmp_path / "dogs"), "balancing": 2.0},
            {"path": str(tmp_path / "checked"), "type": "VALIDATION"},
            {"path": str(tmp_path / "checked"), "enabled": False},
        ],
    })  # fmt: skip
    worker, told = Worker(), []

    def show() -> str:
        steps.show(config)
        finish(worker)
        steps.show(config)
        return steps.text

    steps = StepCount(worker, lambda: told.append(1))
    # 7 and twice 3, six times, four in a step
    assert show() == "about 20 steps" and told == [1]
    assert steps.detail.startswith("10 images give 13 samples to an epoch; 6 epochs, 4 in a step.")
    config.epochs = 600
    assert show() == "about 1,950 steps" and told == [1], "folders that are known are not looked into again"
    (tmp_path / "cats" / "more.png").touch()
    assert show() == "about 1,950 steps"
    monkeypatch.setattr(step_count, "OLD", 0.0)
    assert show() == "about 2,100 steps"
    config.concepts = []
    assert show() == ""


def make_pictures(folder, sizes) -> None:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number}.png")


def show_all(steps, worker, config) -> None:
    # folders, then pictures, then what is shown
    for _ in range(3):
        steps.show(config, exactly=True)
        finish(worker)


def test_batches_have_one_size_each(tmp_path):
    # three shapes: 5, 3 and 1 of them, two in a batch, are 3 + 2 + 1 batches
    make_pictures(tmp_path / "cats", [(64, 64)] * 5 + [(160, 64)] * 3 + [(64, 160)])
    (tmp_path / "cats" / "broken.png").write_bytes(b"no picture")
    config = train_config_from_dict({
        "batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 3, "resolution": "512",
        "concepts": [{"path": str(tmp_path / "cats")}],
    })  # fmt: skip
    worker = Worker()
    steps = StepCount(worker, lambda: None)
    show_all(steps, worker, config)
    # 18 batches, two in a step
    assert (steps.text, steps.steps) == ("9 steps", 9)
    config.aspect_ratio_bucketing = False
    steps.show(config)
    assert steps.text == "about 8 steps", "the count of another config is not shown"
    show_all(steps, worker, config)
    # of one size all: 5 batches an epoch
    assert steps.text == "8 steps"


def test_a_picture_that_lies_on_its_side_and_one_that_changed_are_read_right(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    sizes = ImageSizes()
    assert sizes.of(str(path)) == (20, 30)
    Image.new("RGB", (50, 40)).save(path)
    assert sizes.of(str(path)) == (50, 40)
    assert sizes.of(str(tmp_path / "nowhere.png")) is None


def test_the_time_is_that_of_the_last_run_of_the_same_kind(tmp_path):
    make_pictures(tmp_path / "cats", [(64, 64)] * 6)
    own = {"batch_size": 2, "epochs": 100, "concepts": [{"path": str(tmp_path / "cats")}], "train_device": "cpu"}
    config, runs = train_config_from_dict(own), tmp_path / "runs"

    def keep_run(name: str, seconds: float, changes: dict, device: str, at: float) -> None:
        folder = runs / name
        folder.mkdir(parents=True)
        kept = train_config_from_dict(own | changes).to_dict()
        (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        report = {"seconds_per_step": seconds, "device": device}
        lines = [{"kind": "step", "step": 1}, {"kind": "finished", "report": report}, {"kind": "ended"}]
        (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        os.utime(folder / "events.jsonl", (at, at))

    card = card_of(config)
    keep_run("older", 9.0, {}, card, 1000)
    keep_run("newer", 0.5, {"epochs": 7, "learning_rate": 1.0}, card, 2000)
    keep_run("another batch", 7.0, {"batch_size": 4}, card, 3000)
    keep_run("another card", 8.0, {}, "a card that nobody has", 4000)
    (runs / "torn").mkdir()
    (runs / "torn" / "events.jsonl").write_text("{", encoding="utf-8")
    assert last_step_time([runs, tmp_path / "nowhere"], config, card) == StepTime(0.5, "newer", card)
    worker = Worker()
    steps = StepCount(worker, lambda: None, (runs,))
    show_all(steps, worker, config)
    assert steps.text == "300 steps · about 2 min 30 s" and "A step took 0.5 s in newer" in steps.detail
    config.resolution = "1024"
    show_all(steps, worker, config)
    assert steps.text == "300 steps", "nothing is said where nothing is known"
