import math
import time

from benchmarks.stability.measurement import draw, report, run
from benchmarks.stability.output_variance import INPUTS, PORTIONS
from benchmarks.stability.registry import QUESTIONS
from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Measured, Trial
from modules.util.config.TrainConfig import TrainConfig
from scripts.stability import LETTERS, SEEDS, main

import pytest
from PIL import Image

CASES = [(letter, case) for letter, question in QUESTIONS.items() for case in question.cases()]
BETTER_CASES = {"LION_ADV freeze", "scaled factored", "per rank noisy", "OFT per_rank noisy", "scaled 1 64"}


def bowl(trial: Trial) -> Measured:
    """A loss that is least at a rate of its question's, less for some cases, and figures as if they were measured."""
    best = QUESTIONS[trial.question].expected_rate(trial.case) * 2
    least = 0.4 if trial.case in BETTER_CASES else 0.5
    loss = least + 0.001 * trial.seed + 0.02 * math.log2(trial.rate / best) ** 2
    return Measured(loss if loss < 1 else math.inf, 1.0, FIGURES[trial.question])


VARIANCES = {f"{portion}, {name}": 1.5 if portion == PORTIONS[0] else 0.75 for portion in PORTIONS for name in INPUTS}
FIGURES = {
    "a": {"flips": 0.1, "fluctuation": 0.01, "last_losses": [0.5]},
    "b": {},
    "c": {f"beta2_{who}_{when}": 0.95 for who in ("noisy", "quiet") for when in ("after", "other")},
    "d": {"changed": 0.02, "disturbed": 0.01, "disturbed_most": 0.3},
    "e": {},
    "f": {**VARIANCES, "base_variance": 0.9, "layers": 3, "points": []},
    "g": {"up_rank": 4.0, "product_rank": 3.0, "points": [[1, 2.0, 2.0], [50, 3.0, 2.5], [100, 4.0, 3.0]]},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Results:
    """Every question answered, in this process: a pool has its own test."""
    results = Results(tmp_path_factory.mktemp("stability") / "rows.jsonl")
    for letter, case in CASES:
        for seed in SEEDS:
            while wanted := QUESTIONS[letter].wanted(results, case, seed, False):
                assert len(wanted) == len(set(wanted))
                for trial in wanted:
                    results.add(trial, bowl(trial))
    return results


@pytest.mark.parametrize(("letter", "case"), CASES)
def test_every_case_is_a_config(letter, case):
    question = QUESTIONS[letter]
    config = TrainConfig().model_copy(update=question.options(case))
    assert config.optimizer.options()["weight_decay"] == 0
    assert len(question.quick_rates(case)) >= 1 and all(0 < rate < 1 for rate in question.quick_rates(case))
    assert set(question.cases(quick=True)) <= set(question.cases())


def test_searches_find_the_best_rate_of_every_case(measured):
    for letter, case in CASES:
        assert measured.seeds(letter, case) == list(SEEDS)
        losses = measured.losses(letter, case, 0)
        if letter not in "bf":
            # the rate on the grid that lies nearest to the best one has a neighbour at either side
            best = min(losses, key=losses.__getitem__)
            assert min(losses) < best < max(losses), (letter, case, losses)


def test_the_report_says_what_the_losses_say(measured):
    text = report(measured, list(QUESTIONS))
    for letter, question in QUESTIONS.items():
        assert f"## {letter}. {question.title}" in text
    lines = text.splitlines()
    assert any("LION_ADV with freeze," in line and "**better**" in line for line in lines)
    assert any("SIGNSGD_ADV with freeze," in line and "**no difference**" in line for line in lines)
    assert any("Noisy gradients, β₂ per rank against β₂ per tensor: **better**" in line for line in lines)
    assert any("Clean gradients, β₂ per rank against β₂ per tensor: **no difference**" in line for line in lines)
    assert any("OFT, noisy gradients, per_rank against flattened: **better**" in line for line in lines)
    assert "**Recommended: scaled_eps on, eps 1.**" in text
    # 1.5η² was put in, which keeps neither promise; the portions add up to it
    assert "OFT, variance: 1η² is promised for white inputs, 1.5η² was found: the promise **does not hold**" in text
    assert "add up to 1.5η², the whole step is 1.5η²; the magnitude's share is 50 %" in text
    assert "Scaled steps, factored at its best rate against the full moment at its own: **better**" in text
    tables = [section for section in text.split("\n\n") if section.startswith("|")]
    assert len(tables) == len(QUESTIONS)
    for own in tables:
        assert len({line.count("|") for line in own.splitlines()}) == 1


def test_pictures_are_drawn_for_what_was_trained(measured, tmp_path):
    paths = draw(measured, list(QUESTIONS), tmp_path)
    assert [path.name for path in paths] == [f"stability_{question.name}.png" for question in QUESTIONS.values()]
    assert all(Image.open(path).size[0] > 700 for path in paths)
    assert not draw(Results(tmp_path / "none.jsonl"), list(QUESTIONS), tmp_path / "none")


def test_a_measurement_goes_on_where_it_stopped(tmp_path):
    path, told = tmp_path / "rows.jsonl", []
    assert not run("e", [0], Results(path), 0, lambda trial, own: None, until=time.monotonic() - 1, train=bowl)
    assert not Results(path).seeds("e", QUESTIONS["e"].cases()[0])
    results = Results(path)
    assert run("e", [0], results, 0, lambda trial, own: told.append(trial), train=bowl)
    assert told and len(set(told)) == len(told)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[: len(lines) // 2]) + "\n", encoding="utf-8")
    half, again = Results(path), []
    assert run("e", [0], half, 0, lambda trial, own: again.append(trial), train=bowl)
    assert 0 < len(again) < len(told)
    assert report(half, "e") == report(results, "e")


def test_a_diverged_search_is_told_and_drawn(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    for case in QUESTIONS["g"].cases():
        for rate in (0.008, 0.016):
            loss = math.inf if case == "MUON_ADV" else 0.5 + rate
            own = Measured(loss, 1.0, {} if loss == math.inf else FIGURES["g"])
            results.add(Trial("g", case, rate, 0, 100), own)
    text = report(results, "g")
    assert "| ADAMW_ADV | 0.0080 (end of the search) |" in text and "| MUON_ADV |" not in text
    assert draw(results, "g", tmp_path)


def test_the_command_line(tmp_path, capsys, measured):
    assert list(LETTERS) == list(QUESTIONS)
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "none.jsonl"), "--only-report"])
    assert "is not there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "none.jsonl"), "--jobs", "0"])
    path = measured._file.path
    assert main(["--output", str(path), "--only-report", "--tables", str(tmp_path / "t.md"), "--questions", "e"]) == 0
    assert "Recommended" in (tmp_path / "t.md").read_text(encoding="utf-8")
    # a full measurement's file is no quick one's
    assert main(["--output", str(path), "--only-report", "--quick"]) == 1
    assert "no file of this measurement" in capsys.readouterr().err
