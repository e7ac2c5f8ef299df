"""Windows of one concept, sample or embedding: every option, and nothing that is typed there is lost or misplaced."""

import json
import shutil
from pathlib import Path

from modules.util.config.load import train_config_from_dict
from modules.viewModel.ConceptModel import CheckResult
from tests.ui.test_fields import new_text

import pytest


@pytest.fixture
def folder(mini_run, tmp_path) -> Path:
    """A copy of the miniature's images, which a test may change."""
    return shutil.copytree(mini_run.concept, tmp_path / "my pictures")


@pytest.fixture
def concepts(app, mini_run, folder, until):
    """The list of three concepts."""
    listed = [{"path": str(folder), "name": name} for name in "ABC"]
    app.form.replace(train_config_from_dict(mini_run.options(concepts=listed)))
    app.show_tab("concepts")
    yield app.views["concepts"][1]
    view = app.views["concepts"][1]
    if view.window is not None:
        view.window.images.lose_edit()
        view.window.destroy()
    until(app, lambda: not app.worker.busy)


def names(app) -> list[str]:
    return [concept.name for concept in app.form.config.concepts]


def type_caption(window, text: str) -> None:
    window.caption.delete("1.0", "end")
    window.caption.insert("1.0", text)
    window.update()


def shows(window, place: int):
    return lambda: window.preview is not None and window.images.shown.place == place


def settle(app, until) -> None:
    """Lets the check of the whole config happen that follows a change."""
    until(app, lambda: not app._checking.waits)
    app.update()


@pytest.mark.parametrize("button", ["up", "down", "duplicate", "remove"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_window_never_edits_another_item(app, concepts, button, place):
    concepts.edit(1)
    window = concepts.window
    if "disabled" in concepts.cards[place][button].state():
        return
    concepts.cards[place][button].invoke()
    expected = names(app)
    app.update()
    assert not window.winfo_exists() and concepts.window is None
    window.form.set_text("name", "typed")
    assert names(app) == expected and "typed" not in expected


def test_a_switch_is_not_undone_by_a_window(app, concepts):
    concepts.edit(1)
    concepts.cards[1]["switch"].invoke()
    assert concepts.window is None and not app.form.config.concepts[1].enabled


def test_a_folder_is_typed_to_its_end(app, concepts, until, folder):
    """The check of the whole config complains of every path on the way."""
    concepts.edit(1)
    window = concepts.window
    entry = window.view.rows["path"].control.entry
    entry.delete(0, "end")
    for key in str(folder):
        entry.insert("end", key)
        if key in "/ ":
            settle(app, until)
    settle(app, until)
    assert window.winfo_exists() and app.form.config.concepts[1].path == str(folder)


def test_another_preset_closes_the_window(app, concepts):
    concepts.edit(1)
    window = concepts.window
    app.session.open(app.presets.find("Tiny/tiny LoRA"), pytest.fail)
    app.update()
    assert not window.winfo_exists() and app.form.config.concepts is None


def test_another_scale_closes_the_window(app, concepts):
    concepts.edit(1)
    window = concepts.window
    app.show_theme(app.settings.theme, 110)
    try:
        app.update()
        assert not window.winfo_exists()
        window.form.set_text("name", "typed")
        assert names(app) == ["A", "B", "C"]
    finally:
        app.show_theme(app.settings.theme, 100)
        app.update()


def test_a_window_goes_with_its_list(app, concepts):
    concepts.edit(1)
    window = concepts.window
    app._rebuild()
    app.update()
    assert not window.winfo_exists()


def test_another_scale_waits_for_a_caption(app, concepts, until, answer):
    concepts.edit(1)
    window = concepts.window
    until(app, shows(window, 0))
    type_caption(window, "mine")
    answer("Cancel", lambda: app.show_theme(app.settings.theme, 110))
    assert window.winfo_exists() and app.settings.scale == 100 and window.images.text == "mine"


def test_a_wrong_value_keeps_a_run_from_starting(app, concepts, until, user, answer):
    settle(app, until)
    assert "disabled" not in app.problems.start.state()
    concepts.edit(2)
    window = concepts.window
    user.set(window.view.rows["balancing"], "-1")
    settle(app, until)
    assert [problem.path for problem in app.form.problems()] == ["concepts.2.balancing"]
    assert "disabled" in app.problems.start.state()
    assert "Balancing" in answer("Go back", window.close) and window.winfo_exists()
    answer("Go back", lambda: concepts.cards[0]["down"].invoke())
    assert window.winfo_exists() and names(app) == ["A", "B", "C"]
    user.set(window.view.rows["balancing"], "2")
    settle(app, until)
    assert app.form.problems() == [] and "disabled" not in app.problems.start.state()
    user.set(window.view.rows["balancing"], "x")
    assert app.form.problems()
    answer("Close", window.close)
    assert not window.winfo_exists() and app.form.problems() == [] and app.form.config.concepts[2].balancing == 2


def test_an_edited_caption_is_never_replaced(app, concepts, until):
    concepts.edit(0)
    window = concepts.window
    until(app, shows(window, 0))
    type_caption(window, "mine")
    window.form.set_value("image.enable_random_flip", True)
    window.form.set_value("text.tag_delimiter", ";")
    window.another.invoke()
    until(app, lambda: window.images.shown.variation == 1)
    assert window.caption.get("1.0", "end-1c") == "mine" and "disabled" not in window.save.state()


def test_going_on_asks_about_a_caption(app, concepts, until, answer, folder):
    concepts.edit(0)
    window = concepts.window
    until(app, shows(window, 0))
    type_caption(window, "mine")
    assert "image 0.png" in answer("Cancel", window.following.invoke)
    assert window.images.shown.place == 0 and window.caption.get("1.0", "end-1c") == "mine"
    answer("Save", window.following.invoke)
    until(app, shows(window, 1))
    assert (folder / "image 0.txt").read_text(encoding="utf-8") == "mine\n"
    assert window.caption.get("1.0", "end-1c") == "a red shape number 1"
    type_caption(window, "lost")
    answer("Lose it", window.preceding.invoke)
    until(app, shows(window, 0))
    assert (folder / "image 1.txt").read_text(encoding="utf-8") == "a red shape number 1"
    assert window.caption.get("1.0", "end-1c") == "mine" and "disabled" in window.save.state()


@pytest.mark.parametrize("way", ["window", "application", "another item"])
def test_closing_asks_about_a_caption(app, concepts, until, answer, way, folder):
    concepts.edit(0)
    window = concepts.window
    until(app, shows(window, 0))
    type_caption(window, "mine")
    act = {"window": window.close, "application": app.close, "another item": lambda: concepts.edit(1)}[way]
    answer("Cancel", act)
    assert window.winfo_exists() and concepts.window is window
    (folder / "image 0.txt").write_text("of another program")
    answer("Save", act)
    assert window.winfo_exists(), "it could not be saved"
    assert "changed by another program" in str(window._varied.cget("text"))
    answer("Lose it", window.close)
    assert not window.winfo_exists() and (folder / "image 0.txt").read_text() == "of another program"


def test_a_caption_outlives_its_concept(app, concepts, until, answer, folder):
    concepts.edit(0)
    window = concepts.window
    until(app, shows(window, 0))
    type_caption(window, "mine")

    def open_another() -> None:
        app.session.open(app.presets.find("Tiny/tiny LoRA"), pytest.fail)
        until(app, lambda: not window.winfo_exists())

    answer("Save", open_another)
    assert (folder / "image 0.txt").read_text(encoding="utf-8") == "mine\n"


def test_after_the_last_image_comes_the_first(app, concepts, until):
    concepts.edit(0)
    window = concepts.window
    until(app, shows(window, 0))
    window.preceding.invoke()
    until(app, shows(window, 6))
    window.following.invoke()
    type_caption(window, "typed before the picture is there")
    until(app, lambda: not app.worker.busy)
    assert window.images.shown.name == "image 6.png" and "7 of 7" in window._title.cget("text")
    window.images.lose_edit()


def test_a_broken_image_is_named(app, concepts, until, folder):
    (folder / "image 1.png").write_bytes(b"no image")
    concepts.edit(0)
    window = concepts.window
    until(app, shows(window, 0))
    window.following.invoke()
    until(app, lambda: window.preview is None)
    assert window._title.cget("text") == "2 of 7 · image 1.png" and "image 1.png" in window._picture.cget("text")


def test_the_check_runs_once_and_says_when_it_is_old(app, concepts, until, monkeypatch):
    from modules.viewModel import ConceptCheck

    begun = []

    def check(config, concept) -> CheckResult:
        begun.append(concept.name)
        return CheckResult("all is well", ())

    monkeypatch.setattr(ConceptCheck, "check_concept", check)
    concepts.edit(0)
    window = concepts.window
    for page in ("dataset check", "preview", "dataset check"):
        window.show_page(page)
    until(app, lambda: window.check_heading.cget("text") == "all is well")
    window.show_page("preview")
    window.show_page("dataset check")
    assert begun == ["A"], "without lines, too, it is done"
    app.form.set_value("resolution", "48")
    assert "check again" in window.check_heading.cget("text")
    window.check_button.invoke()
    until(app, lambda: window.check_heading.cget("text") == "all is well")
    window.form.set_value("include_subdirectories", True)
    assert "check again" in window.check_heading.cget("text") and len(begun) == 2


TEXTS = {"image.resolution_override": "640", "text.caps_randomize_mode": "title"}
LISTS = {
    "concepts": ("concepts", "concepts"),
    "samples": ("sampling", "samples"),
    "embeddings": ("embeddings", "additional_embeddings"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_every_option_of_an_item_can_be_entered(app, concepts, user, until, kind):
    tab, key = LISTS[kind]
    app.show_tab(tab)
    view = app.views[tab][1]
    if kind != "concepts":
        view.add_button.invoke()
    else:
        view.edit(0)
    window = view.window
    basic = {path for path, row in window.view.rows.items() if row.visible}
    window.views.buttons["all"].invoke()
    app.update()
    assert basic < {path for path, row in window.view.rows.items() if row.visible}
    for path, one in window.form.fields.items():
        for sibling, values in one.declared.visible_when.items():
            window.form.set_value(f"{one.parent}.{sibling}".lstrip("."), values[0])
        row = next((row for row in window.view.rows.values() if path in row.paths and row.visible), None)
        assert row is not None, f"{path} has no control"
        control = row.control if row.one.path == path else row.unit
        before = getattr(app.form.config, key)[0].to_dict()
        text = text_for(window.form, path, control.shown())
        user.use(control, text)
        assert window.form.error(path) == "" and control.shown() == window.form.text(path)
        after = getattr(app.form.config, key)[0].to_dict()
        *outer, last = path.split(".")
        inner = before
        for name in outer:
            inner = inner[name]
        number_or_json = one.kind.kind in (bool, int, float, list, dict)
        inner[last] = json.loads(text) if number_or_json else text
        assert after == before, path
        again = train_config_from_dict(json.loads(json.dumps(app.form.config.to_dict())))
        assert getattr(again, key)[0].to_dict() == after
    window.destroy()


def text_for(form, path: str, now: str) -> str:
    """A text that the option accepts, for another value than the one it shows."""
    kind = form.fields[path].kind
    if kind.kind is dict:
        return '{"key": 1}'
    if path in TEXTS:
        return TEXTS[path]
    return next(value for value in kind.values if value != now) if kind.is_enum else new_text(form, path, now)


def test_no_click_drops_a_whole_list(app, concepts):
    app.show_view("all")
    app.show_tab("data")
    app.update()
    rows = app.views["data"][0].rows
    assert rows["concepts"].visible and app.form.is_modified("concepts")
    assert not rows["concepts"]._undo.winfo_manager()
    assert rows["resolution"]._undo.winfo_manager(), "others have the mark"


def test_a_list_that_another_program_changed_is_read_anew(app, concepts, folder, tmp_path, user):
    path = tmp_path / "samples.json"
    path.write_text('[{"prompt": "a cat"}]', encoding="utf-8")
    app.form.config.samples = None
    app.form.config.sample_definition_file_name = str(path)
    app.form.changed("")
    app.show_tab("sampling")
    samples = app.views["sampling"][1]
    samples._asked_for = str(path)
    path.write_text('[{"prompt": "a dog"}]', encoding="utf-8")
    samples.cards[0]["duplicate"].invoke()
    assert json.loads(path.read_text(encoding="utf-8")) == [{"prompt": "a dog"}]
    assert "changed by another program" in app.problems.news
    assert [card["title"].cget("text") for card in samples.cards] == ["a dog"]
    samples.cards[0]["duplicate"].invoke()
    assert [one["prompt"] for one in json.loads(path.read_text(encoding="utf-8"))] == ["a dog", "a dog"]
