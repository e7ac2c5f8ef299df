import math
from collections.abc import Sequence

from benchmarks.forgetting.draw import draw_modes, draw_sizes, draw_trade_off
from benchmarks.forgetting.kinds import CENTERED, FISHER, KINDS, MODES, NONE, RATE, SCALED, STANDARD
from benchmarks.forgetting.plan import (
    METHODS,
    MODE_STRENGTHS,
    RATES,
    forgetting_questions,
    forgetting_settings,
    picture_questions,
    trial_of,
)
from benchmarks.forgetting.report import kind_of, report
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.sizes import (
    FORMS,
    SIZE_METHODS,
    best_of_size,
    grid,
    size_axis,
    size_questions,
    size_report,
    size_spread,
)
from benchmarks.forgetting.tasks import TASKS
from benchmarks.forgetting.trade_off import Point, best_strength, kept_at, kept_at_level, line
from benchmarks.transfer.runner import Train, Trial, Wanted, run
from benchmarks.transfer.Setting import DORA, FULL, LORA, OFT
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from scaled_optim.features.decay_rates import decay_rates
from scaled_optim.roles import ROLES

import pytest
from PIL import Image

BASE = {"training": 0.4, "held_out": 0.5, "ordinary": 0.2, "exchanged": 0.3}


def outcome(trial: Trial) -> tuple[dict, dict]:
    """Without decay 40 % of the concept and 80 % kept; decay takes a third of the concept at the strongest.

    Standard decay wins back 3 points of what was forgotten, centered decay 15, Fisher's none. Seeds are 0.1 points
    apart, and int4 keeps 5 points less than other modes.
    """
    own, place = trial.setting, 0.0
    if own.kind != NONE:
        strengths = KINDS[own.kind].strengths[own.method]
        place = (strengths.index(own.strength) + 1) / len(strengths)
    won = {CENTERED: 0.15, STANDARD: 0.03}.get(own.kind, 0.0) * place - (0.05 if own.mode == "int4" else 0.0)
    kept, score = 0.8 + won + 0.001 * trial.seed, 0.4 * (1 - place / 3)
    anchor = {"bytes": 100, "values": 50, "decode_error": 0.01, "pull_error": 0.2, "left_range": 1}
    found = {
        "training": 0.3, "held_out": 0.5 * (1 - score), "ordinary": 0.25, "exchanged": 0.25 + 0.1 * kept,
        "drift": 0.1, "seconds": 1.0,
        "anchor": anchor if own.kind == CENTERED else None,
    }  # fmt: skip
    if own.pictures:
        found |= {"pictures": {"concept": 0.5, "ordinary": 0.75}, "base_pictures": {"concept": 0.0, "ordinary": 1.0}}
    return found, BASE


def sized(trial: Trial) -> tuple[dict, dict]:
    """Decay gains a tenth at best; its best strength is the middle of the grid, of `scaled_wd` fourfold at size 64."""
    own, gain = trial.setting, 0.0
    if own.kind != NONE:
        best = grid(own.method, own.kind)[2] * (4 if own.kind == SCALED and own.size == 64 else 1)
        gain = 0.1 - 0.02 * math.log(own.strength / best) ** 2
    return {**BASE, "held_out": 0.4 * (1 - gain), "drift": 0.1, "anchor": None}, BASE


def answered(results: Results, questions: Sequence[Wanted], train: Train) -> Results:
    """Answers all questions one after the other in this process."""
    for question in questions:
        for trial in question(results):
            measures, base = train(trial)
            results.add_untrained(trial.setting.task, trial.setting.width, base)
            results.add(trial.setting, trial.seed, trial.rate, measures)
    return results


@pytest.fixture(scope="module", autouse=True)
def one_width(tmp_path_factory):
    """As where nobody has made the bases of other widths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.transfer.tasks.ROOT", tmp_path_factory.mktemp("root"))
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    found = Results(tmp_path_factory.mktemp("rows") / "rows.jsonl", {"script": "test"})
    answered(found, forgetting_questions(METHODS, (0, 1, 2), False), outcome)
    return answered(found, picture_questions(found, METHODS, (0, 1, 2), False), outcome)


@pytest.fixture(scope="module")
def size_results(tmp_path_factory) -> Results:
    found = Results(tmp_path_factory.mktemp("sizes") / "rows.jsonl", {})
    return answered(found, size_questions(SIZE_METHODS, (0,), False), sized)


def test_a_line_is_read_between_its_points():
    points = [Point(*own, 1.0) for own in ((0.0, 0.4, 0.8), (0.1, 0.3, 0.9), (0.2, 0.1, 0.95))]
    assert kept_at(points, 0.35) == pytest.approx(0.85)
    assert kept_at(points, 0.4) == 0.8 and kept_at(points, 0.41) is None
    assert kept_at(points, 0.2) == pytest.approx(0.925)
    # a decay that learns more and keeps more at once is better at every lower score, too
    better = [Point(*own, 1.0) for own in ((0.0, 0.3, 0.8), (0.1, 0.35, 0.9), (0.2, 0.2, 0.7))]
    assert kept_at(better, 0.25) == 0.9


def test_kinds_are_compared_at_equal_concept_scores(results):
    # 90 % of the score is at place 0.3 of each line: 0.8 + 0.3 of what the kind wins back
    centered, standard = (kept_at_level(results, kind_of(FULL, kind, False), 0.9) for kind in (CENTERED, STANDARD))
    assert centered == {seed: pytest.approx(0.845 + 0.001 * seed, abs=2e-4) for seed in (0, 1, 2)}
    assert standard == {seed: pytest.approx(0.809 + 0.001 * seed, abs=2e-4) for seed in (0, 1, 2)}
    text = report(results, METHODS, False)
    # 95 % is at place 0.15, of which 12 points are 1.8: less than the threshold
    told = "no difference (1.8 (1.8–1.8) points) at 95 %, more (3.6 (3.6–3.6) points) at 90 %"
    assert f"- full, centered decay keeps against standard decay: {told}" in text
    assert "| none | 0 | 40.0 (40.0–40.0) [25.0] | 80.1 (80.0–80.2) | 80.0 (80.0–80.0) |" in text
    assert "- full, Fisher decay keeps against standard decay: no difference" in text
    assert "- OFT starts from zero" in text and "OFT, centered decay keeps" not in text
    assert "- full, int4: worse than `full` (kept)" in text and "- full, wrapped8: as good as `full`" in text
    assert "| base model | – | – | 0.0 | 100.0 |" in text and "| wrapped4 | 100 | 2.00 |" in text


def test_the_best_strength_keeps_most_at_enough_of_the_concept(results):
    # 90 % of the score allows place 0.3, between the first strength at 0.2 and the second
    assert best_strength(results, kind_of(FULL, CENTERED, False)).strength == KINDS[CENTERED].strengths[FULL][0]
    assert best_strength(results, kind_of(FULL, NONE, False)).kind == NONE
    assert best_strength(results, Setting("forgetting", "2", FULL, 0, CENTERED)) is None


def test_diverged_runs_are_told_and_left_out(tmp_path):
    found = Results(tmp_path / "rows.jsonl", {})
    found.add_untrained("forgetting", "1", BASE)
    plain = kind_of(FULL, NONE, False)
    found.add(plain, 0, 0.016, outcome(trial_of(plain, 0))[0])
    lost = Setting("forgetting", "1", FULL, 0, STANDARD, 0.1)
    found.add(lost, 0, 0.016, {"training": math.inf, "held_out": math.nan, "ordinary": math.inf,
                               "exchanged": math.inf, "drift": math.nan,
                               "anchor": None, "seconds": 1.0})  # fmt: skip
    read = Results(tmp_path / "rows.jsonl")
    assert read.measures(lost)[0]["held_out"] is None and len(line(read, lost, 0)) == 1
    assert "| standard | 0.1 | diverges (1 of 1)" in report(read, [FULL], False)


def test_a_measurement_goes_on_where_it_stopped(results, tmp_path):
    read = Results(results.path)
    questions = forgetting_questions(METHODS, (0, 1, 2), False) + picture_questions(read, METHODS, (0,), False)
    assert not any(question(read) for question in questions)
    # the processes of the other measurements train the rest of a file that was cut off
    lines, told = results.path.read_text(encoding="utf-8").splitlines(), []
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(lines[:-2]) + "\n", encoding="utf-8")
    cut = Results(short)
    assert run(questions, cut, 1, lambda trial, own: told.append(trial), None, outcome) and len(told) == 2
    assert report(cut, METHODS, False) == report(results, METHODS, False)
    assert report(read, METHODS, False) == report(results, METHODS, False)


def test_files_are_checked(tmp_path):
    path = tmp_path / "rows.jsonl"
    Results(path, {"script": "test"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"setting": ')
    with pytest.raises(UserError, match="cut off"):
        Results(path)
    path.write_text('{"columns": []}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no file of this measurement"):
        Results(path)


def test_pictures_are_drawn(results, size_results, tmp_path):
    draw_trade_off(results, tmp_path / "trade_off.png", METHODS, False)
    draw_modes(results, tmp_path / "modes.png", METHODS, False)
    draw_sizes(size_results, tmp_path / "sizes.png", SIZE_METHODS, False)
    assert all(Image.open(tmp_path / f"{name}.png").size[0] > 1000 for name in ("trade_off", "modes", "sizes"))
    draw_trade_off(size_results, tmp_path / "none.png", METHODS, False)
    assert not (tmp_path / "none.png").exists()


def test_best_strengths_over_sizes(size_results):
    middle = grid(LORA, STANDARD)[2]
    assert size_spread(size_results, LORA, STANDARD, False) == pytest.approx(1.0)
    # the grid has thirds and tenths in turns, of which a parabola in the logarithm is exact
    assert size_spread(size_results, LORA, SCALED, False) == pytest.approx(4.0, rel=0.01)
    best = best_of_size(size_results, size_axis(LORA, False)[0], STANDARD)
    assert best.strength == pytest.approx(middle, rel=0.01) and not best.edge and best.gain == pytest.approx(0.1)
    text = size_report(size_results, SIZE_METHODS, False)
    assert "scaled_wd within 4.00×" in text and "full: decay helps at fewer than two sizes" in text


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_a_config(method):
    settings = forgetting_settings(method, False)
    assert len(set(settings)) == len(settings) and settings[0].kind == NONE
    assert {own.kind for own in settings} == {kind for kind, own in KINDS.items() if method in own.strengths}
    assert {own.mode for own in settings} == (set(MODES) if method in MODE_STRENGTHS else {"full"})
    quick = forgetting_settings(method, True)
    assert len(quick) < len(settings) and all(own.task in TASKS for own in [*settings, *quick])
    for own in settings:
        options = TrainConfig().model_copy(update=own.options()).optimizer.options()
        assert options["scaled_optm"] and bool(options["fisher_wd"]) == (FISHER in own.kind)
        wanted = own.strength if own.kind not in (NONE, RATE) else 0.0
        assert (options["weight_decay"] or 0.0) + (options["centered_wd"] or 0.0) == wanted
        share = own.strength if own.kind == RATE else 1.0
        assert trial_of(own, 0).rate == pytest.approx(share * RATES[method])


def test_centered_decay_of_what_starts_from_zero_is_standard_decay():
    for name in ("LORA_DOWN", "LORA_UP", "OFT"):
        role = ROLES[name]
        rates = [
            decay_rates({"weight_decay": plain, "centered_wd": own}, role) for plain, own in ((0.1, 0.0), (0.0, 0.1))
        ]
        assert rates[0] == rates[1] == (0.1, 0.0)
    assert decay_rates({"weight_decay": 0.0, "centered_wd": 0.1}, ROLES["HIDDEN"]) == (0.0, 0.1)


def test_sizes_are_those_that_are_there():
    assert [own.size for own in size_axis(LORA, False)] == [own.size for own in size_axis(OFT, False)] == [4, 16, 64]
    assert {own.width for own in size_axis(FULL, False)} >= {"1"}
    assert CENTERED in FORMS[FULL] and CENTERED not in FORMS[LORA] and DORA not in SIZE_METHODS
    assert all(grid(method, form) == sorted(grid(method, form)) for method in FORMS for form in FORMS[method])
