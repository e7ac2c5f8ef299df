"""Which image a concept's window shows, and whose caption is edited beside it."""

import shutil
from pathlib import Path

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.load import train_config_from_dict
from modules.util.UserError import UserError
from modules.viewModel.ConceptPreview import ConceptPreview

import pytest


@pytest.fixture
def folder(tmp_path, mini_concept) -> Path:
    """Its images, which a test may change; without captions."""
    folder = shutil.copytree(mini_concept, tmp_path / "pictures")
    for file in folder.glob("*.txt"):
        file.unlink()
    return folder


@pytest.fixture
def show(mini_run, folder):
    """show(images, by=1, variation=2): wishes and draws as a window does."""
    config, concept = train_config_from_dict(mini_run.options()), ConceptConfig(path=str(folder))

    def act(images: ConceptPreview, by: int = 0, variation: int = 0, where: Path = folder, typed: str = "") -> bool:
        images.wish(by, variation)
        _, work = images.draw(config, concept.model_copy(update={"path": str(where)}))
        images.text = typed or images.text
        return images.take(work())

    return act


def test_before_and_after_the_first(show):
    images = ConceptPreview()
    assert images.message == "Drawing …" and images.title == "" and not images.is_edited
    assert show(images)
    assert (images.message, images.title) == ("", "1 of 7 · image 0.png") and images.facts.startswith("Variation 1: ")
    assert show(images, -1) and images.title == "7 of 7 · image 6.png"
    assert show(images, 1) and images.title == "1 of 7 · image 0.png"


def test_a_caption_is_written_beside_the_image_that_is_shown(show, folder):
    images = ConceptPreview()
    show(images)
    images.wish(1)
    images.text = "of image 0"
    assert images.is_edited
    images.save()
    assert (folder / "image 0.txt").read_text(encoding="utf-8") == "of image 0\n" and not images.is_edited
    assert not (folder / "image 1.txt").exists()
    assert show(images, 1) and images.text == "" and images.shown.file == folder / "image 1.txt"


def test_whoever_types_while_the_next_is_drawn_stays(show):
    images = ConceptPreview()
    show(images)
    assert not show(images, 1, typed="of image 0")
    assert images.title == "1 of 7 · image 0.png" and images.text == "of image 0"
    assert show(images, variation=1) and images.facts.startswith("Variation 2: ")
    assert images.text == "of image 0" and images.is_edited


def test_an_edited_caption_keeps_its_image(show, folder, tmp_path):
    images = ConceptPreview()
    show(images, 2)
    images.text = "mine"
    assert show(images, 1) and images.title == "3 of 7 · image 2.png"
    (folder / "a new one.png").write_bytes((folder / "image 0.png").read_bytes())
    assert show(images) and images.title == "4 of 8 · image 2.png"
    assert show(images, where=tmp_path / "elsewhere") and images.shown.name == "image 2.png"
    assert images.text == "mine" and images.shown.file == folder / "image 2.txt"
    images.lose_edit()
    assert images.text == "" and not images.is_edited
    assert show(images, where=tmp_path / "elsewhere") and images.message.startswith("There are no images")


def test_a_file_that_changed_meanwhile_is_not_overwritten(show, folder):
    images = ConceptPreview()
    show(images)
    images.text = "mine"
    (folder / "image 0.txt").write_text("of another program", encoding="utf-8")
    show(images, variation=1)
    with pytest.raises(UserError, match="changed by another program"):
        images.save()
    assert images.is_edited and images.text == "mine"


def test_only_the_newest_wish_counts(mini_run, folder):
    images, config = ConceptPreview(), train_config_from_dict(mini_run.options())
    _, old = images.draw(config, ConceptConfig(path=str(folder)))
    images.wish(3)
    _, new = images.draw(config, ConceptConfig(path=str(folder)))
    assert images.take(new()) and not images.take(old())
    assert images.shown.place == 3


def test_what_cannot_be_drawn_is_named(show, folder):
    (folder / "image 1.png").write_bytes(b"no image")
    (folder / "image 2.txt").write_bytes(b"\xff\xfe")
    images = ConceptPreview()
    show(images, 1)
    assert images.title == "2 of 7 · image 1.png" and "image 1.png" in images.message
    assert images.shown.picture is None and images.shown.file == folder / "image 1.txt"
    show(images, 1)
    assert "can't be read" in images.shown.caption_trouble and images.shown.file is None
    images.text = "mine"
    assert not images.is_edited, "there is nowhere to write it"


def test_a_failure_is_shown(mini_run, folder):
    images = ConceptPreview()
    number, _ = images.draw(train_config_from_dict(mini_run.options()), ConceptConfig(path=str(folder)))
    assert images.take(images.failed(number, ValueError("the reason"))) and images.message == "the reason"


def test_trailing_blanks_of_a_file_are_no_edit(show, folder):
    (folder / "image 0.txt").write_text("a word  \n\n", encoding="utf-8")
    images = ConceptPreview()
    show(images)
    images.text = "a word"
    assert not images.is_edited
