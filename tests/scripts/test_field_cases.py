"""Inputs with which people lost time or pictures, from end to end through `scripts/train.py`: nothing is silent."""

import os
import sys
import time
from pathlib import Path

from tests.load_script import load_script

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
pytestmark = pytest.mark.usefixtures("keep_signal_handlers")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A concept of one captioned image."""
    folder = tmp_path / "data"
    folder.mkdir()
    add(folder, "a.png").with_suffix(".txt").write_text("a red shape")
    return folder


@pytest.fixture
def train(mini_run, folder, monkeypatch, capsys):
    """train(options) -> the warnings of a run with them, or of its check alone; it must end well."""
    script = load_script("train")

    def call(*arguments: str, **options) -> list[str]:
        config = mini_run.write(concepts=[{"path": str(folder), "text": options.pop("text", {})}], **options)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--config-path", str(config), *arguments])
        assert script.main() == 0
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).replace("\r", "\n").split("\n")
        return [line for line in lines if line.startswith("warning:")]

    return call


def add(folder: Path, name: str) -> Path:
    path = folder / name
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    return path


def test_a_sound_folder_has_no_warnings(train):
    assert train("--validate") == []


def test_masks_under_other_names(train, folder):
    add(folder, "b.png").with_suffix(".txt").write_text("a red shape")
    for name in ("a-masklabel.jpg", "b_mask.png"):
        Image.new("L", (64, 64), 255).save(folder / name)
    (line,) = train("--validate", masked_training=True)
    assert "a-masklabel.jpg, b_mask.png" in line


@pytest.mark.parametrize("arguments", [("--validate",), ()])
def test_a_caption_that_is_cut(train, folder, arguments):
    (folder / "a.txt").write_text("a red shape " * 30)
    (line,) = train(*arguments, epochs=1)
    assert "1 of 1 captions has more" in line and str(folder / "a.txt") in line
    assert train("--validate", prompt_chunks=32) == []


def test_captions_under_other_names(train, folder):
    (folder / "a.txt").rename(folder / "a.caption")
    (line,) = train("--validate")
    assert "a.caption" in line
    (folder / "a.caption").rename(folder / "a.odd")
    (line,) = train("--validate")
    assert "its only image has no caption" in line and line.endswith("a.odd")


def test_a_caption_in_paragraphs(train, folder):
    (folder / "a.txt").write_text("a red shape\n\non white\n")
    (line,) = train("--validate")
    assert "1 of 1 caption has several lines" in line and "caption_lines" in line
    assert train("--validate", text={"caption_lines": "JOIN"}) == []


@pytest.mark.parametrize("expression", [r"down_blocks\.\d{1,2}\.attentions", r"^(\w+\.?)+to_q$"])
def test_regular_expressions_with_a_comma_and_without_end(train, expression):
    options = {"layer_filter_preset": "custom", "layer_filter_regex": True, "epochs": 1}
    assert train(layer_filter=expression, **options) == []


def test_a_large_profile(train, folder):
    with Image.open(folder / "a.png") as image:
        image.save(folder / "a.png", icc_profile=b"colour " * 300_000)
    assert train("--validate") == []


def test_twelve_bits_in_sixteen(train, folder):
    ramp = np.linspace(0, 4095, 64)[None, :] * np.ones((64, 1))
    Image.fromarray(ramp.astype(np.uint16)).save(folder / "a.tif")
    (line,) = train("--validate")
    assert "a.tif" in line and "far below" in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_images(train, folder):
    os.mkfifo(folder / "x.png")
    (line,) = train("--validate")
    assert "x.png: left out" in line and "it is a pipe" in line


def test_a_prompt_of_ten_megabytes(train):
    sample = {"prompt": "red " * 2_500_000, "width": 32, "height": 32, "diffusion_steps": 1}
    start = time.monotonic()
    lines = train(epochs=1, samples=[sample], sample_after=1, sample_after_unit="STEP")
    assert any("1 of 2 prompts has more" in line for line in lines)
    assert time.monotonic() - start < 60  # a few seconds on an idle core; minutes where the whole of it is read
