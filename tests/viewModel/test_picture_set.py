"""Which pictures of a concept are shown, what is said of them, and where their captions come from."""

import json
import time
from pathlib import Path

from modules.tool.WrittenCaptions import WrittenCaptions
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from modules.viewModel.caption_edits import Within
from modules.viewModel.PictureLook import LookStopped, PictureLook
from modules.viewModel.PictureSet import PictureSet, Show, badge_of, name_of
from modules.viewModel.read_pictures import picture_size, read_pictures, small_picture

import numpy
import pytest
from PIL import Image

MANY = 10_000


def draw(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0, **options) -> Path:
    """A picture of noise, which is sharp and like no other."""
    noise = numpy.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), numpy.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def opened(folder: Path, config: TrainConfig | None = None, **concept) -> PictureSet:
    pictures = PictureSet(config or TrainConfig(resolution="64"), ConceptConfig(path=str(folder), **concept))
    pictures.take(pictures.load()())
    while (work := pictures.measure()) is not None:
        pictures.take_sizes(work())
    return pictures


def names(pictures: PictureSet) -> list[str]:
    return [one.name for one in pictures.shown]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, of which three have a caption."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for place, text in enumerate(("a red cat, sofa", "a Dog, red", None, "redder")):
        draw(folder / f"{place}.png", seed=place)
        if text is not None:
            (folder / f"{place}.txt").write_text(f"{text}\n", encoding="utf-8")
    return folder


def test_filter(folder):
    pictures = opened(folder)
    assert names(pictures) == ["0.png", "1.png", "2.png", "3.png"] and pictures.heading == "4 pictures"
    for text, within, expected in (
        ("RED", Within.ANYWHERE, "0 1 3"), ("red", Within.WORDS, "0 1"), ("red", Within.TAGS, "1"),
        ("2.PNG", Within.ANYWHERE, "2"), ("none has it", Within.ANYWHERE, ""),
    ):  # fmt: skip
        assert pictures.set_filter(text, within, Show.ALL)
        assert not pictures.set_filter(f" {text} ", within, Show.ALL), "it is the same"
        assert names(pictures) == [f"{name}.png" for name in expected.split()]
        assert pictures.empty_text == ("" if expected else "No picture has this.")
    pictures.set_filter("", Within.TAGS, Show.WITHOUT)
    assert names(pictures) == ["2.png"] and pictures.heading == "1 of 4 pictures"
    assert pictures.counts()[Show.WITHOUT] == 1
    assert pictures.count_tags()[:2] == [("a Dog", 1), ("a red cat", 1)]
    assert pictures.count_words()[:2] == [("a", 2), ("red", 2)]


def test_marks(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    sharp = draw(folder / "a.png", (96, 96), seed=1)
    Image.open(sharp).resize((192, 192), Image.Resampling.NEAREST).save(folder / "b.png")
    draw(folder / "c.png", (40, 40), seed=2)
    for place in range(3):
        draw(folder / f"d{place}.png", (96, 96), seed=place + 5)
    Image.linear_gradient("L").resize((96, 96)).save(folder / "e.png")
    (folder / "f.png").write_bytes(b"no picture")
    (folder / "g.png").write_bytes((folder / "d0.png").read_bytes())
    pictures = opened(folder)
    marks = {one.name: pictures.marks(one) for one in pictures.pictures}
    assert marks["f.png"] == [Show.LEFT_OUT, Show.WITHOUT] and marks["c.png"] == [Show.WITHOUT, Show.SMALL]
    look, told = PictureLook(pictures), []
    assert look.is_due
    work = look.begin()
    look._tell = lambda *step: told.append(step)
    look.take(work())
    assert not look.is_due and not look.is_busy and look.trouble == ""
    marks = {one.name: set(pictures.marks(one)) - {Show.WITHOUT} for one in pictures.pictures}
    assert marks == {
        "a.png": {Show.DOUBLES}, "b.png": {Show.DOUBLES}, "c.png": {Show.SMALL}, "d0.png": {Show.DOUBLES},
        "d1.png": set(), "d2.png": set(), "e.png": {Show.SOFT}, "f.png": {Show.LEFT_OUT}, "g.png": {Show.DOUBLES},
    }  # fmt: skip
    pictures.set_filter("", Within.ANYWHERE, Show.DOUBLES)
    assert names(pictures) == ["a.png", "b.png", "d0.png", "g.png"], "those that are alike stand together"
    said = {one.name: " ".join(pictures.explain(one)) for one in pictures.pictures}
    assert "b.png" in said["a.png"] and "no image that Pillow knows" in said["f.png"] and "enlarged" in said["c.png"]
    assert [badge_of(mark) for mark in pictures.marks(pictures.pictures[7])] == ["left out", "no caption"]
    assert len({name_of(mark) for mark in Show}) == len(Show)
    pictures.forget(pictures.pictures[0])
    assert names(pictures) == ["d0.png", "g.png"], "b.png is no double any more"


def test_a_look_can_be_stopped(folder):
    pictures = opened(folder)
    look = PictureLook(pictures)
    work = look.begin()
    look.stop()
    with pytest.raises(LookStopped) as stopped:
        work()
    look.take(stopped.value)
    assert not look.is_busy and look.trouble == "" and pictures.looks is None
    (folder / "0.txt").write_bytes(b"\xff")
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    work = look.begin()
    with pytest.raises(UserError) as error:
        work()
    look.take(error.value)
    assert "can't be compared" in look.trouble


def test_small_follows_the_resolution(folder):
    assert opened(folder).counts()[Show.SMALL] == 4
    assert opened(folder, TrainConfig(resolution="32")).counts()[Show.SMALL] == 0
    image = {"enable_resolution_override": True, "resolution_override": "512"}
    assert opened(folder, TrainConfig(resolution="32"), image=image).counts()[Show.SMALL] == 4


def test_names_of_caption_files(tmp_path):
    for name in ("a.jpg", "b.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "f.png"):
        draw(tmp_path / name)
    (tmp_path / "a.caption").write_text("of a")
    (tmp_path / "c.json").write_text(json.dumps({"tags": ["one", "two"]}))
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "e.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "f.txt").write_text("of both")
    pictures = opened(tmp_path)
    files = {one.name: one.caption and one.caption.name for one in pictures.pictures}
    assert files == {
        "a.jpg": "a.caption", "b.jpg": "b.jpg.txt", "b.png": "b.png.txt", "c.jpg": None, "d.jpg": "d.txt",
        "e.jpg": "e.txt", "f.jpg": "f.txt", "f.png": "f.txt",
    }  # fmt: skip
    by_name = {one.name: one for one in pictures.pictures}
    assert pictures.text(by_name["c.jpg"]) == "one, two" and "c.json" in pictures.why_fixed(by_name["c.jpg"])
    assert "UTF-8" in pictures.why_fixed(by_name["e.jpg"]) and Show.WITHOUT not in pictures.marks(by_name["e.jpg"])
    assert pictures.sharing(by_name["f.jpg"]) == ["f.png"] and pictures.sharing(by_name["a.jpg"]) == []
    assert pictures.count_tags()[:2] == [("of both", 2), ("of a", 1)]


def test_captions_from_elsewhere_are_not_edited(folder, tmp_path):
    pictures = opened(folder, text={"prompt_source": "filename"})
    assert [pictures.text(one) for one in pictures.pictures] == ["0", "1", "2", "3"]
    assert "rename the files" in pictures.note and "rename" in pictures.why_fixed(pictures.pictures[0])
    pictures = opened(folder, text={"prompt_source": "concept", "prompt_path": "prompts of mine.txt"})
    assert "prompts of mine.txt" in pictures.note and pictures.counts()[Show.WITHOUT] == 0


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_pictures(ConceptConfig(path=str(tmp_path / "none")))
    with pytest.raises(UserError, match="chosen"):
        read_pictures(ConceptConfig(path=""))
    (tmp_path / "below").mkdir()
    draw(tmp_path / "below" / "a.png")
    assert "subfolders are not included" in opened(tmp_path).note
    assert names(opened(tmp_path, include_subdirectories=True)) == ["below/a.png"]


def test_captions_of_a_model(folder):
    data = b"by a model\n"
    WrittenCaptions(folder).note("3.txt", data)
    assert opened(folder).counts()[Show.BY_MODEL] == 0, "it was changed since"
    (folder / "3.txt").write_bytes(data)
    pictures = opened(folder)
    pictures.set_filter("", Within.ANYWHERE, Show.BY_MODEL)
    assert names(pictures) == ["3.png"] and "A model wrote" in " ".join(pictures.explain(pictures.shown[0]))


def test_small_pictures_are_whole_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = draw(tmp_path / "photo.jpg", (900, 600), exif=exif)
    assert picture_size(str(photo)) == (600, 900) and small_picture(str(photo), 90).size == (60, 90)
    Image.new("RGBA", (30, 60), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    small = small_picture(str(tmp_path / "clear.png"), 100)
    assert small.size == (30, 60) and small.getpixel((3, 3)) == (255, 255, 255), (
        "transparency is white, as in a training"
    )
    (tmp_path / "bad.jpg").write_bytes(photo.read_bytes()[:400])
    assert small_picture(str(tmp_path / "bad.jpg"), 90) is None and picture_size(str(tmp_path / "none.jpg")) is None


def test_ten_thousand_are_listed_and_filtered(tmp_path):
    """The bound is far above what it takes; a square of the number would be far beyond it."""
    for place in range(MANY):
        (tmp_path / f"{place:05}.png").touch()
    (tmp_path / "00999.txt").write_text("a cat")
    pictures = PictureSet(TrainConfig(), ConceptConfig(path=str(tmp_path)))
    start = time.process_time()
    pictures.take(pictures.load()())
    pictures.set_filter("0999", Within.ANYWHERE, Show.ALL)
    assert len(pictures.pictures) == MANY and len(pictures.shown) == 11
    pictures.set_filter("cat", Within.WORDS, Show.ALL)
    assert names(pictures) == ["00999.png"] and pictures.counts()[Show.WITHOUT] == MANY - 1
    assert time.process_time() - start < 20
