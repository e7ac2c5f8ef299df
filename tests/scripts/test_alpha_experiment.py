"""What docs/alpha.md says, made anew."""

import json
import re
from pathlib import Path

from tests.load_script import load_script

import torch

import pytest

ROOT = Path(__file__).resolve().parents[2]
SGD, ADAM, WRONG = "SGD, lr ÷ α", "Adam, lr ÷ √α, ε · √α", "Adam, lr ÷ α"


@pytest.fixture(scope="module")
def script():
    return load_script("alpha_experiment")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_six_alphas_one_training(script, seed):
    # the alphas are powers of four, so every factor is a power of two and float32 rounds the same everywhere
    first, delta = script.losses(SGD, 1.0, seed)
    assert len(set(first)) == script.STEPS, "the loss must move"
    for alpha in script.ALPHAS:
        found, other = script.losses(SGD, alpha, seed)
        assert found == first and torch.equal(other, delta)


@pytest.mark.parametrize("alpha", [3.0, 0.7])
def test_any_other_alpha(script, alpha):
    for run in (SGD, ADAM):
        # √3 and 0.1/3 are rounded, in float32
        assert script.losses(run, alpha)[0] == pytest.approx(script.losses(run, 1.0)[0], rel=1e-6)


def test_adam_needs_the_square_root(script):
    result = script.experiment()
    right, wrong = result[ADAM], result[WRONG]
    for alpha, row in right.items():
        # Adam divides and takes roots of numbers that alpha multiplied by powers of two
        assert row == pytest.approx(right["1"], rel=1e-6)
        assert (alpha == "1") == (wrong[alpha] == pytest.approx(right["1"], rel=1e-4))


def test_the_page_holds_what_the_script_prints(script, tmp_path, capsys):
    path = tmp_path / "folder" / "x.json"
    assert script.main(["--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(path.read_text())["losses"] == script.experiment()
    numbers = [line for line in printed.splitlines() if re.match(r"\| [\d.]+ \|", line)]
    page = (ROOT / "docs" / "alpha.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if re.match(r"\| [\d.]+ \|", line)]

    def values(lines: list[str]) -> list[float]:
        return [float(cell) for line in lines for cell in line.strip("|").split("|")]

    # another processor may round another way; the last digit is 1e-7
    assert values(shown) == pytest.approx(values(numbers), abs=1e-6)
