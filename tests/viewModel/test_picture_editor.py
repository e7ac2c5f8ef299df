"""Captions are edited one by one and many at once, taken back, and never written over what another program wrote."""

import os
from pathlib import Path

from modules.tool.WrittenCaptions import WrittenCaptions
from modules.util import atomic_file
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from modules.viewModel.caption_edits import Action, Edit, Within
from modules.viewModel.CaptionText import CaptionChanged, CaptionText
from modules.viewModel.PictureEditor import PictureEditor
from modules.viewModel.PictureSet import PictureSet, Show
from modules.viewModel.set_aside import move_files, moves_aside

import pytest
from PIL import Image

TEXTS = {"a": b"a red cat\n", "b": b"\xef\xbb\xbfa red dog\r\nred\r\n", "c": b"blue", "d": None, "e": b"caf\xe9 red"}
RED = Edit(Action.REPLACE, "red", "green", Within.WORDS)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five pictures: captions with and without mark and line ends, none, and one that is not UTF-8."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for name, data in TEXTS.items():
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        if data is not None:
            (folder / f"{name}.txt").write_bytes(data)
    return folder


@pytest.fixture
def editor(folder) -> PictureEditor:
    return opened(folder)


def opened(folder: Path) -> PictureEditor:
    pictures = PictureSet(TrainConfig(), ConceptConfig(path=str(folder)))
    pictures.take(pictures.load()())
    return PictureEditor(pictures)


def choose(editor: PictureEditor, name: str) -> None:
    editor.choose(next(one for one in editor.pictures.pictures if one.name == f"{name}.png"))


def on_disk(folder: Path) -> dict[str, bytes | None]:
    files = {name: folder / f"{name}.txt" for name in TEXTS}
    return {name: file.read_bytes() if file.exists() else None for name, file in files.items()}


def test_one_caption(editor, folder):
    choose(editor, "b")
    assert editor.text == "a red dog\nred" and not editor.is_edited
    editor.save()
    assert on_disk(folder) == TEXTS and editor.done == [], "nothing was changed"
    editor.text = "a dog\nred\n\n"
    assert editor.is_edited and "Not saved" in editor.said
    editor.save()
    assert on_disk(folder)["b"] == b"\xef\xbb\xbfa dog\r\nred\r\n", "mark and line ends stay"
    assert not editor.is_edited and editor.text == "a dog\nred"
    editor.take(editor.undo()())
    assert on_disk(folder) == TEXTS and editor.text == "a red dog\nred" and editor.done == []


def test_a_new_caption_goes_again(editor, folder):
    choose(editor, "d")
    editor.text = "  "
    assert not editor.is_edited, "blanks are no caption"
    editor.text = "new"
    editor.save()
    assert on_disk(folder)["d"] == b"new\n" and editor.pictures.counts()[Show.WITHOUT] == 0
    editor.take(editor.undo()())
    assert on_disk(folder)["d"] is None and editor.pictures.counts()[Show.WITHOUT] == 1


def test_what_another_program_wrote_is_not_replaced(editor, folder):
    for name, theirs in (("a", b"theirs\n"), ("d", b"new there\n")):
        choose(editor, name)
        editor.text = "mine"
        (folder / f"{name}.txt").write_bytes(theirs)
        with pytest.raises(CaptionChanged, match="by another program"):
            editor.save()
        assert on_disk(folder)[name] == theirs and editor.is_edited and editor.text == "mine"
        assert f"There: {theirs.decode().strip()}" in editor.conflict() and "Here: mine" in editor.conflict()
        editor.save(over=True)
        assert on_disk(folder)[name] == b"mine\n"
        editor.take(editor.undo()())
        assert on_disk(folder)[name] == theirs, "what was there is not lost"
    choose(editor, "c")
    editor.text = "mine"
    (folder / "c.txt").unlink()
    with pytest.raises(CaptionChanged):
        editor.save()
    editor.reread()
    assert editor.text == "" and not editor.is_edited


def test_choosing_reads_anew(editor, folder):
    (folder / "a.txt").write_text("of another program")
    choose(editor, "a")
    assert editor.text == "of another program"
    editor.text = "mine"
    editor.save()
    assert on_disk(folder)["a"] == b"mine\n" or on_disk(folder)["a"] == b"mine"


def test_many_at_once(editor, folder):
    plan = editor.plan(RED, True)
    assert [(one.path.name, text) for one, text in plan.changes] == [
        ("a.txt", "a green cat"), ("b.txt", "a green dog\ngreen")
    ]  # fmt: skip
    assert plan.heading == "2 of 5 captions change. 1 can't be edited here."
    assert "  − a red cat" in plan.lines and "  + a green dog ⏎ green" in plan.lines
    assert on_disk(folder) == TEXTS, "a plan writes nothing"
    outcome = editor.apply(plan)()
    editor.take(outcome)
    assert outcome.summary == "2 captions written." and outcome.told == ""
    assert on_disk(folder) == TEXTS | {"a": b"a green cat\n", "b": b"\xef\xbb\xbfa green dog\r\ngreen\r\n"}
    assert "red" in editor.done[-1].title
    outcome = editor.undo()()
    editor.take(outcome)
    assert on_disk(folder) == TEXTS and outcome.summary == "2 captions are as they were."


def test_only_those_shown(editor, folder):
    editor.pictures.set_filter("dog", Within.WORDS, Show.ALL)
    assert len(editor.plan(RED, False).changes) == 1 and len(editor.plan(RED, True).changes) == 2
    plan = editor.plan(Edit(Action.FRONT, "ohwx", within=Within.TAGS), True)
    assert "1 of them has no file yet" in plan.heading and plan.heading.startswith("4 of 5")
    editor.take(editor.apply(plan)())
    assert on_disk(folder)["d"] == b"ohwx\n" and on_disk(folder)["c"] == b"ohwx, blue"
    editor.take(editor.undo()())
    assert on_disk(folder) == TEXTS
    assert "Type" in editor.plan(Edit(Action.FRONT, " "), True).heading


def test_many_leave_alone_what_changed_meanwhile(editor, folder):
    work = editor.apply(editor.plan(RED, True))
    (folder / "a.txt").write_bytes(b"red, theirs")
    outcome = work()
    editor.take(outcome)
    assert on_disk(folder)["a"] == b"red, theirs" and b"green" in on_disk(folder)["b"]
    assert "a.txt" in outcome.told and "1 caption was changed by another program" in outcome.told
    assert editor.pictures.text(editor.pictures.pictures[0]) == "red, theirs", "it is shown as it is"
    (folder / "b.txt").write_bytes(b"later")
    outcome = editor.undo()()
    editor.take(outcome)
    assert on_disk(folder)["b"] == b"later" and "b.txt" in outcome.told and editor.done == []


def test_a_disk_that_fills_up(editor, folder, monkeypatch):
    """What was written can be taken back, and what could not be taken back can be tried again."""
    write, room = atomic_file.write_bytes, [1]

    def full(path, data) -> None:
        if not room[0]:
            raise UserError("the disk is full")
        room[0] -= 1
        write(path, data)

    monkeypatch.setattr(atomic_file, "write_bytes", full)
    outcome = editor.apply(editor.plan(RED, True))()
    editor.take(outcome)
    assert b"green" in on_disk(folder)["a"] and on_disk(folder)["b"] == TEXTS["b"]
    assert "the disk is full" in outcome.told and "1 caption is not written" in outcome.told
    outcome = editor.undo()()
    editor.take(outcome)
    assert b"green" in on_disk(folder)["a"] and len(editor.done) == 1
    room[0] = 1
    editor.take(editor.undo()())
    assert on_disk(folder) == TEXTS and editor.done == []


def test_an_edited_caption_of_a_model_is_a_persons(folder):
    WrittenCaptions(folder).note("a.txt", TEXTS["a"])
    editor = opened(folder)
    assert editor.pictures.counts()[Show.BY_MODEL] == 1
    choose(editor, "a")
    editor.text = "a red cat, corrected"
    editor.save()
    assert editor.pictures.counts()[Show.BY_MODEL] == 0 and not WrittenCaptions(folder).has(folder / "a.txt")
    editor.take(editor.undo()())
    assert editor.pictures.counts()[Show.BY_MODEL] == 1 and WrittenCaptions(folder).has(folder / "a.txt")
    editor.take(editor.apply(editor.plan(RED, True))())
    assert not WrittenCaptions(folder).has(folder / "a.txt")


def test_a_picture_is_set_aside_with_what_is_its_own(folder, tmp_path):
    Image.new("L", (8, 8)).save(folder / "a-masklabel.png")
    (folder / "b.jpg").write_bytes((folder / "b.png").read_bytes())
    editor = opened(folder)
    choose(editor, "a")
    moves = editor.moves()
    aside = tmp_path / "my pictures set aside"
    assert [(one.name, to) for one, to in moves] == [
        (name, aside / name) for name in ("a.png", "a-masklabel.png", "a.txt")
    ]
    question = editor.move_question(moves)
    assert f"Move a.png to {aside}?" in question and "with it: a-masklabel.png, a.txt." in question
    assert editor.undo_help == "Nothing yet."
    editor.set_aside(moves)
    assert editor.undo_help == "Takes back: setting a.png aside."
    assert editor.chosen is None and "a.png" not in [one.name for one in editor.pictures.pictures]
    assert sorted(os.listdir(aside)) == ["a-masklabel.png", "a.png", "a.txt"] and not (folder / "a.txt").exists()
    choose(editor, "b")
    assert [one.name for one, _ in editor.moves()] == ["b.png"], "the caption is another picture's, too"
    assert "with it" not in editor.move_question(editor.moves())
    editor.choose(None)
    outcome = editor.undo()()
    editor.take(outcome)
    assert outcome.done.moves and os.listdir(aside) == [] and on_disk(folder) == TEXTS


def test_moving_replaces_nothing(folder, tmp_path):
    aside = tmp_path / "my pictures set aside"
    aside.mkdir()
    (aside / "a.png").write_bytes(b"other")
    moves = moves_aside(folder, str(folder / "a.png"))
    assert moves[0][1] == aside / "2" / "a.png"
    (aside / "c.txt").mkdir()
    late = [(folder / f"c{ending}", aside / f"c{ending}") for ending in (".png", ".txt")]
    with pytest.raises(UserError, match="Nothing was moved"):
        move_files(late)
    assert (folder / "c.png").exists() and not (aside / "c.png").exists()


def test_line_ends_and_blanks_are_kept(tmp_path):
    for data in (b"one\rtwo\r", b"one\ntwo", b"one\r\ntwo \n\n", b" one\ntwo\n"):
        file = tmp_path / "a.txt"
        file.write_bytes(data)
        known = CaptionText.read(file)
        assert known.with_text(known.text) == data
        assert known.with_text(known.text.replace("two", "2")) == data.replace(b"two", b"2")
