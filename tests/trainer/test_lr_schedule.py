"""Schedules by hand-computed values."""

import math

from modules.trainer.lr_schedule import scaled_learning_rate, schedule_factor
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


@pytest.mark.parametrize("path", ["no_such_module.Class", "torch.optim.lr_scheduler.NoSuchClass"])
def test_custom_class_that_is_not_there(path):
    with pytest.raises(UserError, match="custom_learning_rate_scheduler: .* can't be imported"):
        factors(learning_rate_scheduler="CUSTOM", custom_learning_rate_scheduler=path)


def test_custom_class_that_refuses_its_arguments():
    with pytest.raises(UserError, match="scheduler_params: .*StepLR refuses"):
        factors(**CUSTOM, scheduler_params=[{"key": "no_such", "value": 1}])


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
