import time

from modules.util.config.load import train_config_from_dict
from modules.viewModel import StepCount as step_count
from modules.viewModel.StepCount import StepCount
from modules.viewModel.Worker import Worker


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
        while worker.busy:
            worker.poll()
            time.sleep(0.01)
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
