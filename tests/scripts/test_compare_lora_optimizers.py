"""`scripts/compare_lora_optimizers.py`, its smallest slice: rows, table, pictures, and going on where it stopped."""

import json
import os

from scripts.compare_lora_optimizers import ROOT, main

import torch

import pytest
from PIL import Image

SLICE = ["--small", "--steps", "2", "--optimizers", "no adapter", "ADAMW", "--rates", "0.01"]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """The script goes to the repository's folder and sets threads."""
    monkeypatch.chdir(ROOT)
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_slice_and_its_continuation(tmp_path, capsys):
    numbers, text = tmp_path / "new" / "rows.json", tmp_path / "table.md"
    pictures = [tmp_path / "quality.png", tmp_path / "balance.png"]
    outputs = ["--json", str(numbers), "--table", str(text)]
    outputs += ["--plot", str(pictures[0]), "--balance-plot", str(pictures[1])]
    assert main([*SLICE, *outputs]) == 0
    printed = capsys.readouterr().out
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert [(row["optimizer"], row["rate"], row["seed"]) for row in found["rows"]] == [
        ("no adapter", 0.0, 0), ("no adapter", 0.0, 1), ("ADAMW", 0.01, 0), ("ADAMW", 0.01, 1)
    ]  # fmt: skip
    assert printed.count("validation") == 5 and "| ADAMW | 0.01 |" in text.read_text(encoding="utf-8")
    assert found["facts"]["task"] == "sentence" and found["commit"] is not None and found["versions"]["torch"]
    for path in pictures:
        with Image.open(path) as image:
            assert image.size[0] > 200
    assert main([*SLICE, "--seeds", "1", "2", "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    assert "no adapter rate 0 seed 2" in printed and "ADAMW rate 0.01 seed 2" in printed and "seed 1" not in printed
    again = json.loads(numbers.read_text(encoding="utf-8"))
    assert [row for row in again["rows"] if row["seed"] < 2] == found["rows"]
    assert again["summary"]["ADAMW"]["seeds"] == [1, 2] and again["summary"]["ADAMW"]["validation"]["spread"] > 0
    assert main([*SLICE, "--rank", "2", "--json", str(numbers)]) == 1
    assert "was made with another rank; name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rates", "0"], "--rates: found [0.0], expected numbers above 0"),
        (["--seeds", "0"], "0 chooses the learning rates"),
        (["--steps", "0"], "--steps: found 0, expected at least 1"),
    ],
)
def test_wrong_options(more, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--json", str(tmp_path / "x.json"), *more])
    assert message in capsys.readouterr().err


def test_an_unknown_optimizer_is_one_line(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "x.json"), "--optimizers", "ADAMV"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --optimizers: found ADAMV") and error.count("\n") == 1
