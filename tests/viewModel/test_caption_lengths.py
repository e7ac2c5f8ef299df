"""Captions that are longer than what the text encoder reads are marked, where that can be told."""

import json
from functools import cache
from pathlib import Path

from modules.trainer import CaptionReader as reader_module
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.load import train_config_from_dict
from modules.viewModel.caption_edits import Within
from modules.viewModel.PictureEditor import PictureEditor
from modules.viewModel.PictureSet import PictureSet, Show

import pytest
from PIL import Image

CAT = "a red cat"
LONG = f"{CAT} " * 30
SD = {"model_type": "STABLE_DIFFUSION_15", "base_model_name": "nobody/has-this", "resolution": "8"}


_made = reader_module.CaptionReader


@cache
def shared_reader(text: str) -> reader_module.CaptionReader:
    """Of the options in a text; to make one takes a third of a second."""
    return _made(train_config_from_dict(json.loads(text)))


@pytest.fixture(autouse=True)
def share(monkeypatch):
    def make(config):
        return shared_reader(json.dumps(config.to_dict(), sort_keys=True))

    monkeypatch.setattr(reader_module, "CaptionReader", make)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, text in (("a", CAT), ("b", LONG), ("c", None), ("d", f"{CAT}\n\n{LONG}\n{CAT}")):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        if text is not None:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def opened(folder: Path, config: dict = SD, **concept) -> PictureSet:
    pictures = PictureSet(train_config_from_dict(config), ConceptConfig.from_dict({"path": str(folder), **concept}))
    pictures.take(pictures.load()())
    learn(pictures)
    return pictures


def learn(pictures: PictureSet, typed: str = "") -> None:
    while (found := pictures.learn(typed)) is not None:
        work, take = found
        try:
            result = work()
        except Exception as error:
            result = error
        take(result)


def badges(pictures: PictureSet) -> dict[str, list[str]]:
    return {one.name[0]: pictures.badges(one) for one in pictures.pictures}


def test_marks_and_filter(folder):
    pictures = opened(folder)
    assert badges(pictures) == {"a": [], "b": ["90 / 75 tokens"], "c": ["no caption"], "d": ["90 / 75 tokens"]}
    assert pictures.counts()[Show.LONG] == 2
    pictures.set_filter("", Within.ANYWHERE, Show.LONG)
    assert [one.name for one in pictures.shown] == ["b.png", "d.png"]
    one, several = map(pictures.explain, pictures.shown)
    assert one == [
        "The caption has 90 tokens, and 75 are read: the rest is cut. Shorten it, or set “Long prompts” to 2."
    ]
    assert several[0].startswith("1 of the 3 captions is longer than the 75 tokens that are read. The longest has 90.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"caption_lines": "JOIN"}, {"b": ["90 / 75 tokens"], "d": ["96 / 75 tokens"]}),
        # commas are tokens, too
        ({"caption_lines": "JOIN_TAGS"}, {"b": ["90 / 75 tokens"], "d": ["98 / 75 tokens"]}),
        ({"prompt_source": "filename"}, {}),
        ({"prompt_source": "concept"}, dict.fromkeys("abcd", ["90 / 75 tokens"])),
    ],
)
def test_captions_are_what_the_concept_makes_of_files(folder, tmp_path, text, expected):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{CAT}\n{LONG}\n", encoding="utf-8")
    found = badges(opened(folder, text={"prompt_path": str(prompts), **text}))
    assert {name: found[name] for name in found if found[name] not in ([], ["no caption"])} == expected


def test_more_chunks_read_more(folder):
    pictures = opened(folder, {**SD, "prompt_chunks": 2})
    assert pictures.counts()[Show.LONG] == 0 and pictures.length_text(LONG.rstrip()) == "90 / 150 tokens"


def test_nothing_is_said_where_nothing_is_known(folder):
    pictures = opened(folder, {**SD, "model_type": "FLUX_DEV_1"})
    assert Show.LONG not in pictures.counts() and badges(pictures)["b"] == []
    assert pictures.length_text(LONG.rstrip()) == "" and pictures.learn() is None


def test_a_caption_that_is_edited(folder):
    pictures = opened(folder)
    editor = PictureEditor(pictures)
    pictures.set_filter("", Within.ANYWHERE, Show.LONG)
    editor.choose(pictures.shown[0])
    assert editor.length_text == "90 / 75 tokens"
    editor.text = f"{CAT} {CAT}"
    assert editor.length_text == "" and editor.said == "Not saved yet.", "it is not counted yet"
    learn(pictures, editor.text)
    assert editor.length_text == "6 / 75 tokens" and editor.said == "Not saved yet."
    editor.save()
    learn(pictures)
    assert pictures.counts()[Show.LONG] == 1
    assert [one.name for one in pictures.shown] == ["b.png", "d.png"], "it does not go from under the hands"
    pictures.refresh()
    assert [one.name for one in pictures.shown] == ["d.png"]
