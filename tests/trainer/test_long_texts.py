"""Captions and prompts that are cut are said; whole runs with long captions in chunks."""

import shutil

from modules.dataLoader.DatasetReport import DatasetImage, DatasetReport
from modules.trainer.long_texts import tell_long_texts
from modules.trainer.sampling import make_grid
from modules.util.config.SampleConfig import SampleConfig

import pytest
from PIL import Image


class CountingModel:
    """Reads words: 3 with one encoder, 5 with two others that agree."""

    def text_limits(self):
        return {"text_encoder": 3, "text_encoder_2": 5, "text_encoder_3": 5}

    def count_tokens(self, component, texts):
        return [len(text.split()) for text in texts]

    def read_more(self, component, tokens):
        return f"length to {tokens}" if component == "text_encoder" else ""


def said(captions: dict[str, tuple[str, ...]], *samples: SampleConfig) -> list[str]:
    images = [
        DatasetImage(0, name, f"data/{name}", 8, 8, "", texts, caption_path=f"data/{name}.txt" if texts[0] else "")
        for name, texts in captions.items()
    ]
    lines: list[str] = []
    tell_long_texts(CountingModel(), DatasetReport(images), samples, lines.append)
    return lines


def test_nothing_is_said_of_short_texts():
    assert said({"a.png": ("one two three",), "b.png": ("",)}, SampleConfig(prompt="one")) == []


def test_how_many_and_by_how_much():
    first, second = said({"a.png": ("1 2 3 4", "1"), "b.png": ("1 2 3 4 5 6 7",), "{c}.png": ("1 2 3 4 5 6 7 8",)})
    assert first == (
        "text_encoder: 3 tokens are read, and 3 of 4 captions have more: what is behind is cut. The longest has 8: "
        "data/{c}.png.txt. Shorten them, or set length to 8"
    )
    assert second.startswith("text_encoder_2, text_encoder_3: 5 tokens are read, and 2 of 4 captions have more")
    assert second.endswith("data/{c}.png.txt. Shorten them")


def test_prompts_too():
    lines = said({}, SampleConfig(prompt="1"), SampleConfig(negative_prompt="1 2 3 4"))
    assert lines == [
        "text_encoder: 3 tokens are read, and 1 of 4 prompts has more: what is behind is cut. The longest has 4: the "
        "negative prompt of sample 2. Shorten them, or set length to 4"
    ]


def test_a_text_of_megabytes_is_always_said():
    (line,) = {line.split(": ", 1)[1] for line in said({"a.png": (" " * 10**6 + "x",)}) if "text_encoder:" in line}
    assert "more than 1: data/a.png.txt" in line


def test_a_grid_shows_the_beginning_of_a_long_prompt():
    picture = Image.new("RGB", (16, 16))
    grid = make_grid([("step 1", [picture])], ["red " * 2_500_000])
    assert grid.height < 5000
    short = "red " * 40
    assert make_grid([("", [picture])], [short]).tobytes() == make_grid([("", [picture])], [short.strip()]).tobytes()


@pytest.fixture
def long_concept(mini_concept, tmp_path):
    folder = tmp_path / "long"
    shutil.copytree(mini_concept, folder)
    for number in (0, 3):
        (folder / f"image {number}.txt").write_text("a red shape, " * 20 + "at the end")
    return [{"path": str(folder)}]


@pytest.mark.parametrize("trained", [False, True], ids=["cached", "trained"])
def test_runs_with_long_captions(make_run, long_concept, trained):
    text_encoder = {"train": trained, "gradient_checkpointing": False}
    options = {"concepts": long_concept, "text_encoder": text_encoder, "epochs": 1, "samples": [
        {"prompt": "a red shape, " * 20, "width": 32, "height": 32, "diffusion_steps": 1}
    ], "sample_after": 4, "sample_after_unit": "STEP"}  # fmt: skip
    digests = {}
    for name, chunks in (("cut", 1), ("chunks", 3), ("again", 3)):
        run = make_run(f"{name} {trained}")
        run.train(prompt_chunks=chunks, **options)
        digests[name] = run.digest()
        cut = [line for line in run.warnings() if "captions have more" in line]
        assert len(cut) == 1 and "2 of 7 captions" in cut[0] and "image " in cut[0]
        assert sum("1 of 2 prompts has more" in line for line in run.warnings()) == 1
    assert digests["cut"] != digests["chunks"] == digests["again"]
