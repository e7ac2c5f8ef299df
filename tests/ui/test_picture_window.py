"""The window of a concept's pictures: looked at, searched, and their captions edited, as a person does it."""

import shutil
from pathlib import Path

from modules.util.config.load import train_config_from_dict
from modules.viewModel.caption_edits import Action, Within
from modules.viewModel.PictureSet import Show

import pytest
from PIL import Image


@pytest.fixture
def folder(mini_run, tmp_path) -> Path:
    """A copy of the miniature's seven images, one of them twice and one without a caption."""
    folder = shutil.copytree(mini_run.concept, tmp_path / "my pictures")
    with Image.open(folder / "image 1.png") as image:
        image.save(folder / "image 1 again.png")
    (folder / "image 6.txt").unlink()
    return folder


@pytest.fixture
def concept(app, mini_run, folder):
    """The card of the concept in the list."""
    listed = [{"path": str(folder), "name": "my cat"}]
    app.form.replace(train_config_from_dict(mini_run.options(concepts=listed)))
    app.show_tab("concepts")
    return app.views["concepts"][1].cards[0]


@pytest.fixture
def window(app, concept, until):
    """The window, opened from the list of concepts, when all is known of its pictures."""
    concept["pictures"].invoke()
    window = app.picture_window
    until(app, lambda: window.pictures.pictures and not window.look.is_busy and not app.worker.busy)
    yield window
    window.editor.reread()
    window.destroy()
    until(app, lambda: not app.worker.busy)


def names(window) -> list[str]:
    return [one.name for one in window.pictures.shown]


def typed(window) -> str:
    return window.caption.caption.get("1.0", "end-1c")


def type_caption(window, text: str) -> None:
    box = window.caption.caption
    box.delete("1.0", "end")
    for key in text:
        box.insert("insert", key)
    window.update()


def type_into(entry, text: str) -> None:
    entry.delete(0, "end")
    entry.insert(0, text)


def click(window, index: int) -> None:
    """A click into the middle of a cell that is seen."""
    left, top = window.tiles._places.place(index)
    canvas = window.tiles.canvas
    canvas.event_generate("<Button-1>", x=left + 40, y=top + 40 - round(canvas.canvasy(0)))
    window.update()


def press(window, key: str) -> None:
    window.focus_force()
    window.tiles.canvas.focus_force()
    window.update()
    window.tiles.canvas.event_generate(f"<{key}>")
    window.update()


def test_captions_are_read_and_edited(app, window, folder, until):
    assert names(window)[:3] == ["image 0.png", "image 1 again.png", "image 1.png"] and len(names(window)) == 8
    assert window.heading.cget("text") == "8 pictures" and typed(window) == (folder / "image 0.txt").read_text()
    assert window.tiles.drawn == 8 and all(cell.photo for cell in window.tiles._cells.values())
    third = (folder / "image 2.txt").read_text()
    click(window, 2)
    assert window.editor.chosen.name == "image 1.png" and typed(window) == "a red shape number 1"
    assert "image 1 again.png" in window.caption.said.text and window.caption._photo is not None
    type_caption(window, "ohwx, a red shape")
    assert "Not saved" in window.caption.said.text and "disabled" not in window.caption.save_button.state()
    press(window, "Right")
    assert (folder / "image 1.txt").read_text() == "ohwx, a red shape", "it is saved when another one is chosen"
    assert window.editor.chosen.name == "image 2.png" and typed(window) == (folder / "image 2.txt").read_text()
    window.caption.caption.insert("end", ", typed")
    window._show_again(window.pictures.shown)
    assert typed(window).endswith(", typed"), "what is found meanwhile does not take a key away"
    window.caption.caption.insert("end", " late")
    window.tiles.go("End")
    assert (folder / "image 2.txt").read_text().endswith(", typed late")
    assert window.editor.chosen.name == "image 6.png" and typed(window) == ""
    window.tiles.canvas.event_generate("<Return>")
    window.update()
    assert window.focus_get() is window.caption.caption
    type_caption(window, "the last one")
    window.caption.caption.event_generate("<Control-s>")
    window.update()
    assert (folder / "image 6.txt").read_text() == "the last one\n"
    for file, text in (("image 6.txt", None), ("image 2.txt", third), ("image 1.txt", "a red shape number 1")):
        window.undo_button.invoke()
        until(app, lambda: not app.worker.busy)
        assert (folder / file).read_text() == text if text else not (folder / file).exists()
    assert "disabled" in window.undo_button.state()


def test_search_and_replace(app, window, folder, until):
    before = {file.name: file.read_bytes() for file in folder.glob("*.txt")}
    window.show_page("replace")
    page = window.replace
    assert "disabled" in page.button.state()
    type_into(page.text, "shape")
    type_into(page.by, "form")
    until(app, lambda: page.planned is not None and page.planned.changes)
    assert page.heading.cget("text") == "6 of 8 captions change." and "+ a red form number 1" in page.examples.text
    window.filter.look_for("number 1", Within.WORDS)
    assert names(window) == ["image 1.png"]
    page.scope.take("shown")
    assert page.heading.cget("text") == "1 of 1 caption changes."
    page.scope.take("all")
    page.button.invoke()
    until(app, lambda: not app.worker.busy)
    assert (folder / "image 3.txt").read_text() == before["image 3.txt"].decode().replace("shape", "form")
    assert "6 captions written." in window.news.cget("text")
    page.action.take(Action.FRONT)
    assert page.within.chosen == Within.TAGS and not page.by.winfo_manager()
    type_into(page.text, "ohwx")
    page.button.invoke()
    page.run()
    until(app, lambda: not app.worker.busy)
    assert (folder / "image 6.txt").read_text() == "ohwx\n"
    assert (folder / "image 1.txt").read_text() == "ohwx, a red form number 1"
    for _ in range(2):
        window.undo_button.invoke()
        until(app, lambda: not app.worker.busy)
    assert {file.name: file.read_bytes() for file in folder.glob("*.txt")} == before


def test_tags_and_marks_filter(app, window, folder, until):
    (folder / "image 0.txt").write_text("red, round")
    (folder / "image 2.txt").write_text("blue, round")
    window.reload()
    until(app, lambda: not app.worker.busy)
    window.show_page("tags")
    place = window.tags.texts.index("round")
    assert window.tags.box.get(place) == " 2 × round "
    window.tags.box.selection_set(place)
    window.tags.box.event_generate("<<ListboxSelect>>")
    window.update()
    assert names(window) == ["image 0.png", "image 2.png"] and window.filter.search.get() == "round"
    assert window.heading.cget("text") == "2 of 8 pictures" and window.tiles.drawn == 2
    window.filter.clear.invoke()
    assert len(names(window)) == 8
    for show, expected in ((Show.DOUBLES, 2), (Show.WITHOUT, 2), (Show.SMALL, 0)):
        window.filter.show.take(show)
        assert len(names(window)) == expected and f"({expected})" in window.filter.show.cget("text")


def test_captions_that_are_too_long_are_marked(app, window, folder, until):
    (folder / "image 0.txt").write_text("a red shape, " * 9)
    window.reload()
    until(app, lambda: not app.worker.busy)
    tiles = window.tiles
    name = tiles.canvas.itemcget(tiles._cells[0].badges[0][1], "text")
    tokens, limit = map(int, name.removesuffix(" tokens").split(" / "))
    assert tokens > limit == 22, "the miniature's"
    assert window.caption.length.cget("text") == name and f"{limit} are read" in window.caption.said.text
    window.filter.show.take(Show.LONG)
    assert names(window) == ["image 0.png"] and "caption too long (1)" in window.filter.show.cget("text")
    type_caption(window, "a red shape")
    until(app, lambda: window.caption.length.cget("text") == f"3 / {limit} tokens")
    assert "are read" not in window.caption.said.text
    window.save()
    until(app, lambda: not app.worker.busy)
    assert "caption too long (0)" in window.filter.show.cget("text")
    assert "tokens" not in tiles.canvas.itemcget(tiles._cells[0].badges[0][1], "text")


def test_what_another_program_wrote_is_asked_for(app, window, folder, answer):
    file = folder / "image 0.txt"
    type_caption(window, "mine")
    file.write_text("theirs")
    assert "theirs" in answer("Go back", lambda: click(window, 3)) and typed(window) == "mine"
    assert window.editor.chosen.name == "image 0.png" and file.read_text() == "theirs"
    # another place, as two clicks on one are something else
    answer("Keep mine", lambda: click(window, 4))
    assert file.read_text() == "mine" and window.editor.chosen.name == "image 3.png"
    click(window, 0)
    type_caption(window, "mine again")
    file.write_text("theirs again")
    answer("Take that one", window.save)
    assert file.read_text() == typed(window) == "theirs again"


def test_a_picture_is_moved_aside_and_back(app, window, folder, until, answer):
    click(window, 1)
    aside = folder.parent / "my pictures set aside"
    assert "Nothing is deleted" in answer("Leave it", window.caption.aside_button.invoke) and not aside.exists()
    answer("Move it", window.caption.aside_button.invoke)
    assert [file.name for file in aside.iterdir()] == ["image 1 again.png"] and len(names(window)) == 7
    assert window.editor.chosen.name == "image 1.png" and window.caption.said.text == ""
    window.undo_button.invoke()
    until(app, lambda: not app.worker.busy)
    assert (folder / "image 1 again.png").exists() and len(names(window)) == 8
    assert window.editor.chosen.name == "image 1 again.png" and "image 1.png" in window.caption.said.text


def test_many_pictures_share_few_cells(app, window, folder, until):
    data = (folder / "image 0.png").read_bytes()
    for place in range(400):
        (folder / f"more {place:03}.png").write_bytes(data)
    window.reload()
    until(app, lambda: not app.worker.busy)
    tiles = window.tiles
    assert len(names(window)) == 408 and "disabled" not in window.look_button.state()
    for key in ("End", "Home", "Next", "Prior"):
        press(window, key)
    tiles._scroll_to("moveto", "0.5")
    until(app, lambda: not app.worker.busy and all(cell.photo for cell in tiles._cells.values()))
    first = min(tiles._cells)
    assert first > 100 and len(tiles._cells) + len(tiles._free) < 60
    assert tiles.canvas.itemcget(tiles._cells[first].name, "text") == names(window)[first]


@pytest.mark.parametrize("way", ["concept", "tool"])
def test_other_ways_to_it(app, concept, folder, until, way):
    if way == "concept":
        concept["edit"].invoke()
        concepts = app.views["concepts"][1]
        concepts.window.all_pictures.invoke()
    else:
        app.kept.pop("forms of tools", None)
        app._rebuild()
        app.show_tab("tools")
        tools = app.views["tools"][1]
        tools.show_tool("captions")
        tools.read_button.invoke()
        assert "Choose the folder" in tools.pages["captions"].note.cget("text")
        tools.pages["captions"].form.set_text("folder", str(folder))
        tools.read_button.invoke()
    window = app.picture_window
    until(app, lambda: window.pictures.pictures and not app.worker.busy)
    type_caption(window, "saved at the end")
    assert app.close_pictures() and not window.winfo_exists()
    assert (folder / "image 0.txt").read_text() == "saved at the end"
    if way == "concept":
        concepts.window.destroy()
        until(app, lambda: not app.worker.busy)
