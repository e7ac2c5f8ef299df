import json
import math
import time

from benchmarks.transfer.draw import draw_transfer
from benchmarks.transfer.overview import draw_overview, overview_settings
from benchmarks.transfer.plan import chosen_settings, questions, transfer_questions
from benchmarks.transfer.questions import (
    AXES,
    BLOCK_AXIS,
    METHOD_AXIS,
    RANK_AXIS,
    RULE_NAMES,
    WIDTH_AXIS,
    all_settings,
    axis_settings,
    expected_rate,
    reference,
    settings_of,
)
from benchmarks.transfer.report import report
from benchmarks.transfer.Results import Results, merge
from benchmarks.transfer.runner import Trial, run
from benchmarks.transfer.Setting import FULL, LORA, Setting
from benchmarks.transfer.summary import best_rate, bests, spread, transferred_rate
from benchmarks.transfer.tasks import ONE, TASKS
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import pytest
from PIL import Image

UNTRAINED = 1.0


def bowl(trial: Trial) -> tuple[float, float]:
    """A loss whose best rate is 0.02, for rank 64 0.04, and half an octave higher for each seed."""
    best = 0.02 * (2 if trial.setting.size == 64 else 1) * 2 ** (trial.seed / 2)
    return 0.5 + 0.015 * math.log2(trial.rate / best) ** 2, UNTRAINED


def measured(
    path, rules=("ADAMW_ADV",), axes=("rank",), until=None, told=lambda trial, loss: None, workers=0
) -> Results:
    results, seeds = Results(path, {"script": "test"}), {True: (0, 1, 2), False: ()}
    if run(questions(["lumo"], rules, seeds, axes), results, workers, told, until, bowl):
        run(transfer_questions(results, ["lumo"], rules, seeds, axes), results, 0, told, until, bowl)
    return results


def test_best_rates_spread_and_regret(tmp_path):
    # in a process of its own, as trainings are; elsewhere in this one, as each takes seconds to start
    results = measured(tmp_path / "rows.jsonl", workers=1)
    settings = axis_settings(RANK_AXIS, "lumo", "ADAMW_ADV", True)
    own = best_rate(results, settings[2])
    # exact up to the four digits of rates: no loss is 5 % above the least
    assert (own.low, own.median, own.high) == pytest.approx((0.02, 0.02 * 2**0.5, 0.04), rel=0.01)
    assert own.seeds == 3 and not own.edge and own.gain == pytest.approx(0.5, abs=0.01)
    found = spread(results, settings)
    assert (found.median, found.low, found.high) == pytest.approx((2, 2, 2), rel=0.01) and found.count == 5
    # the rate of the grid beside the reference's median, 0.0283
    assert transferred_rate(results, settings[0]) == 0.032
    # rank 64's middle seed is 0.82 octaves off: 0.0101 of the 0.5 to be gained, and 0.0005 of that at the grid's best
    assert best_rate(results, settings[3]).regret == pytest.approx(0.0192, rel=0.1)
    # its own middle seed is a third of an octave off, where the grid has no better rate
    assert best_rate(results, settings[2]).regret == pytest.approx(0.0022, abs=0.002)
    text = report(results, ["lumo"], ["ADAMW_ADV"])
    assert "2.00 (2.00–2.00)" in text and "| LoRA 64 | 1 | 0.0566 |" in text


def test_a_slice_needs_no_base_that_has_to_be_made():
    settings = chosen_settings("lumo", "ADAMW_ADV", True, None, quick=True)
    assert {own.width for own in settings} == {ONE} and {own.method for own in settings} == {"LoRA", "OFT"}
    assert settings[0] == reference("lumo", "ADAMW_ADV", True) and len(settings) < 8


def test_no_picture_of_a_task_that_was_not_measured(tmp_path):
    draw_transfer(Results(tmp_path / "rows.jsonl", {"script": "test"}), tmp_path / "longer.png", "longer", RULE_NAMES)
    assert not (tmp_path / "longer.png").exists()


def test_the_overview_has_both_kinds_of_steps_or_is_not_drawn(tmp_path):
    results, picture = Results(tmp_path / "rows.jsonl", {"script": "test"}), tmp_path / "pictures" / "transfer.png"

    def measure(seeds, axes):
        run(questions(["lumo"], ["ADAMW_ADV"], seeds, axes), results, 0, lambda *told: None, None, bowl)

    measure({True: (0, 1), False: ()}, ["rank", "method"])
    assert not draw_overview(results, picture, "lumo", "ADAMW_ADV") and not picture.exists()
    run(
        questions(["lumo"], ["ADAMW_ADV"], {True: (), False: (0,)}, ["rank"]),
        results,
        0,
        lambda *told: None,
        None,
        bowl,
    )
    assert draw_overview(results, picture, "lumo", "ADAMW_ADV")
    with Image.open(picture) as image:
        assert image.size == (1000, 360)
    scaled, plain = (overview_settings(results, "lumo", "ADAMW_ADV", kind) for kind in (True, False))
    assert [own.label() for own in scaled] == ["LoRA 1", "LoRA 4", "LoRA 16", "LoRA 64", "LoRA 128", "DoRA 16", "full",
                                               "OFT 16"]  # fmt: skip
    assert {own.method for own in plain} == {LORA}


def test_a_measurement_goes_on_where_it_stopped(tmp_path):
    path, told = tmp_path / "rows.jsonl", []
    measured(path, until=time.monotonic() - 1)
    assert not Results(path).settings()
    whole = measured(path, told=lambda trial, loss: told.append(trial))
    assert told and len(set(told)) == len(told)
    again = []
    measured(path, told=lambda trial, loss: again.append(trial))
    assert not again
    # half of it, and the other half later: the same losses
    lines = path.read_text(encoding="utf-8").splitlines()
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join(lines[: len(lines) // 2]) + "\n", encoding="utf-8")
    rest = measured(half)
    assert {s: bests(rest, s) for s in rest.settings()} == {s: bests(whole, s) for s in whole.settings()}


def test_files_are_merged_and_checked(tmp_path):
    one, other = (Results(tmp_path / name, {}) for name in ("one.jsonl", "other.jsonl"))
    setting = Setting("lumo", "1", "ADAMW_ADV", True, LORA, 4)
    one.add(setting, 0, 0.008, 0.5)
    other.add(setting, 0, 0.008, 0.7)
    other.add(setting, 1, 0.016, math.inf)
    other.add_untrained("lumo", "1", 1.0)
    merge(one, [other])
    read = Results(tmp_path / "one.jsonl")
    assert read.losses(setting, 0) == {0.008: 0.5} and read.losses(setting, 1) == {0.016: math.inf}
    assert read.untrained == {("lumo", "1"): 1.0} and best_rate(read, setting).seeds == 1
    with (tmp_path / "one.jsonl").open("a", encoding="utf-8") as file:
        file.write('["lumo", ')
    with pytest.raises(UserError, match="cut off"):
        Results(tmp_path / "one.jsonl")
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}), encoding="utf-8")
    with pytest.raises(UserError, match="no file of this measurement"):
        Results(tmp_path / "other.json")


@pytest.mark.parametrize(
    "setting", all_settings(list(TASKS), RULE_NAMES, True) + all_settings(list(TASKS), RULE_NAMES, False)
)
def test_every_setting_is_a_config(setting):
    config = TrainConfig().model_copy(update=setting.options())
    assert setting.rule == "STIEFEL_LORA" or config.optimizer.options()["scaled_optm"] == setting.scaled
    assert 0 < expected_rate(setting) < 1
    assert (config.training_method == "FINE_TUNE") == (setting.method == FULL)


def test_axes_are_those_that_the_goals_name():
    ranks = [s.size for s in axis_settings(RANK_AXIS, "sentence", "STIEFEL_LORA", True)]
    assert ranks == [1, 16, 128]
    assert [s.size for s in axis_settings(RANK_AXIS, "lumo", "STIEFEL_LORA", True)] == [1, 4, 16, 64]
    assert [s.size for s in axis_settings(RANK_AXIS, "lumo", "ADAMW_ADV", False)] == [1, 4, 16, 64, 128]
    assert [s.size for s in axis_settings(BLOCK_AXIS, "lumo", "ADAMW_ADV", True)] == [4, 16, 64, 128]
    assert [s.width for s in axis_settings(WIDTH_AXIS, "lumo", "LORA_RITE", True)] == ["1/2", "1", "2"]
    assert [s.method for s in axis_settings(METHOD_AXIS, "second", "LION_ADV", True)] == ["LoRA", "DoRA", "OFT", "full"]
    assert [s.size for s in axis_settings(RANK_AXIS, "second", "STIEFEL_LORA", True)] == [1, 16, 64]
    assert [s.size for s in axis_settings(BLOCK_AXIS, "sentence", "LION_ADV", True)] == [4, 16, 128]
    assert not axis_settings(BLOCK_AXIS, "lumo", "LORA_RITE", True) and not settings_of("lumo", "STIEFEL_LORA", False)
    assert [axis.goal for axis in AXES] == [1.25, 1.25, 1.25, 1.5]
