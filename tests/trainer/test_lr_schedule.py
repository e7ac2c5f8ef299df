"""Schedules by hand-computed values."""

import math

from modules.trainer.lr_schedule import scaled_learning_rate, schedule_factor
from modules.util.config.topics.TrainingOptions import CUSTOM_SCHEDULES
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import pytest

TOTAL = 40
CUSTOM = {"learning_rate_scheduler": "CUSTOM", "custom_learning_rate_scheduler": "torch.optim.lr_scheduler.StepLR"}


def factors(total: int = TOTAL, **options) -> list[float]:
    config = TrainConfig.from_dict({"learning_rate_warmup_steps": 0, **options})
    factor = schedule_factor(config, total)
    return [factor(step) for step in range(total)]


# name -> f(z), z the share of the run that is over
SHAPES = {
    "CONSTANT": lambda z: 1.0,
    "LINEAR": lambda z: 1 - z,
    "COSINE": lambda z: (1 + math.cos(math.pi * z)) / 2,
    "REX": lambda z: (1 - z) / (1 - z / 2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_over_the_whole_run(name):
    wanted = [SHAPES[name](step / TOTAL) for step in range(TOTAL)]
    assert factors(learning_rate_scheduler=name) == pytest.approx(wanted)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_after_warm_up_with_a_lowest_factor(name):
    options = {"learning_rate_scheduler": name, "learning_rate_warmup_steps": 8, "learning_rate_min_factor": 0.2}
    found = factors(**options)
    assert found[:8] == pytest.approx([(step + 1) / 8 for step in range(8)]), "no step has rate zero, the last is full"
    assert found[8:] == pytest.approx([0.2 + 0.8 * SHAPES[name](step / 32) for step in range(32)])
    assert min(found[8:]) >= 0.2


def test_a_number_up_to_one_is_a_share_of_the_run():
    assert factors(learning_rate_warmup_steps=0.25) == factors(learning_rate_warmup_steps=10)


def test_a_warm_up_longer_than_the_run_only_rises():
    assert factors(learning_rate_warmup_steps=200) == pytest.approx([(step + 1) / 200 for step in range(TOTAL)])


def test_hard_restarts_jump_back_to_full():
    found = factors(learning_rate_scheduler="COSINE_WITH_HARD_RESTARTS", learning_rate_cycles=4)
    assert [step for step in range(TOTAL) if found[step] == pytest.approx(1)] == [0, 10, 20, 30]
    assert all(found[step] > found[step + 1] for step in range(TOTAL - 1) if (step + 1) % 10)
    assert found[9] == pytest.approx((1 + math.cos(math.pi * 0.9)) / 2)


def test_restarts_come_back_smoothly_and_end_low():
    found = factors(total=400, learning_rate_scheduler="COSINE_WITH_RESTARTS", learning_rate_cycles=2)
    # a cosine down, up and down again: 1, 0, 1, 0 at the thirds
    assert found[0] == 1 and found[133] == pytest.approx(0, abs=1e-3)
    assert found[267] == pytest.approx(1, abs=1e-3) and found[399] < 1e-3
    assert max(abs(a - b) for a, b in zip(found, found[1:], strict=False)) < 0.02
    assert factors(learning_rate_scheduler="COSINE_WITH_RESTARTS") == pytest.approx(
        factors(learning_rate_scheduler="COSINE")
    ), "one cycle is the plain cosine"


def test_a_resumed_run_asks_for_a_step_out_of_order():
    config = TrainConfig.from_dict({"learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 5})
    factor = schedule_factor(config, TOTAL)
    assert factor(30) == factor(30) and factor(3) == pytest.approx(0.8)


def test_custom_class_with_arguments():
    options = [{"key": "step_size", "value": 10}, {"key": "gamma", "value": 0.5}]
    found = factors(**CUSTOM, scheduler_params=options)
    assert found == pytest.approx([0.5 ** (step // 10) for step in range(TOTAL)])


def test_custom_arguments_have_words_for_the_runs_numbers():
    words = [{"key": "step_size", "value": "%TOTAL_STEPS%"}, {"key": "gamma", "value": 0.5}]
    assert factors(**CUSTOM, scheduler_params=words) == [1.0] * TOTAL


@pytest.mark.parametrize(
    "path",
    [
        "no_such_module.Class", "torch.optim.lr_scheduler.NoSuchClass", "torch.optim.lr_scheduler.LambdaLR",
        "torch.optim.lr_scheduler.LRScheduler", "torch.optim.lr_scheduler.math.exp", "builtins.print",
        "subprocess.Popen", "diffusers.DiffusionPipeline.from_pretrained", "stranger.Schedule", "os.system",
    ],
)  # fmt: skip
def test_only_listed_classes_are_schedules(path, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom torch.optim.lr_scheduler import StepLR\n"
        "class Schedule(StepLR):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="custom_learning_rate_scheduler: found .*, expected one of torch.*StepLR"):
        factors(learning_rate_scheduler="CUSTOM", custom_learning_rate_scheduler=path)
    assert not (tmp_path / "ran").exists()


def test_every_listed_class_makes_a_schedule():
    needed = {
        "CosineAnnealingLR": {"T_max": "%TOTAL_STEPS%"}, "CosineAnnealingWarmRestarts": {"T_0": 10},
        "CyclicLR": {"base_lr": 0.1, "max_lr": "%LR%"}, "ExponentialLR": {"gamma": 0.9},
        "MultiStepLR": {"milestones": [10, 20]}, "OneCycleLR": {"max_lr": "%LR%", "total_steps": "%TOTAL_STEPS%"},
        "StepLR": {"step_size": 10},
    }  # fmt: skip
    for path in CUSTOM_SCHEDULES:
        options = [{"key": key, "value": value} for key, value in needed.get(path.rpartition(".")[2], {}).items()]
        found = factors(learning_rate_scheduler="CUSTOM", custom_learning_rate_scheduler=path, scheduler_params=options)
        assert len(found) == TOTAL and len(set(found)) > 1 and all(0 <= factor < 1.001 for factor in found)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("no_such", 1, "scheduler_params.0: StepLR has no argument .no_such., expected one of step_size, gamma"),
        ("optimizer", 1, "scheduler_params.0: StepLR has no argument .optimizer."),
        ("step_size", {"a": 1}, "scheduler_params.0: found an object for step_size, expected a number"),
        ("step_size", 0, "scheduler_params: StepLR refuses step_size=0: "),
        ("step_size", "ten", "scheduler_params: StepLR refuses step_size=.ten.: "),
        ("step_size", 1e400, "scheduler_params.0: found Infinity"),
    ],
)
def test_custom_class_that_refuses_its_arguments(key, value, text):
    with pytest.raises(UserError, match=text):
        factors(**CUSTOM, scheduler_params=[{"key": key, "value": value}])


def test_factors_below_zero_are_refused():
    options = [{"key": "step_size", "value": 1}, {"key": "gamma", "value": -1}]
    with pytest.raises(UserError, match="gives a factor of -1 at step 2, expected 0 or more"):
        factors(**CUSTOM, scheduler_params=options)


def test_adafactors_schedule_is_named_as_unsupported():
    with pytest.raises(UserError, match="learning_rate_scheduler: ADAFACTOR is not supported.*COSINE.*relative_step"):
        factors(learning_rate_scheduler="ADAFACTOR")


@pytest.mark.parametrize(("scaler", "factor"), [("NONE", 1), ("BATCH", 4), ("GRADIENT_ACCUMULATION", 9), ("BOTH", 36)])
def test_scaler_takes_the_square_root_of_a_count(scaler, factor):
    config = TrainConfig.from_dict(
        {
            "learning_rate": 0.5, "learning_rate_scaler": scaler, "batch_size": 4, "gradient_accumulation_steps": 9,
            "text_encoder": {"learning_rate": 0.25},
        }
    )  # fmt: skip
    assert scaled_learning_rate(config, config.unet.learning_rate) == pytest.approx(0.5 * math.sqrt(factor))
    assert scaled_learning_rate(config, config.text_encoder.learning_rate) == pytest.approx(0.25 * math.sqrt(factor))
