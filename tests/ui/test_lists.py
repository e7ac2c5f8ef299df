"""The lists made by hand: concepts with their window, samples, embeddings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from modules.util.config.load import train_config_from_dict
from modules.viewModel.ConceptModel import images_of

import pytest


@pytest.fixture
def folder(mini_run, tmp_path):
    """A copy of the miniature's images, which a test may change."""
    return shutil.copytree(mini_run.concept, tmp_path / "pictures")


@pytest.fixture
def concepts(app, mini_run, folder):
    app.form.replace(train_config_from_dict(mini_run.options(concepts=[{"path": str(folder), "name": "first"}])))
    app.show_tab("concepts")
    view = app.views["concepts"][1]
    yield view
    if view.window is not None:
        view.window.destroy()


def test_a_folder_is_added_edited_and_removed(app, concepts, until, user, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    concepts.add_folders([other])
    until(app, lambda: [one.name for one in app.form.config.concepts] == ["first", "other"])
    count = len(images_of(app.form.config.concepts[1]))
    until(app, lambda: f"{count} images" in concepts.cards[1]["about"].cget("text"))
    concepts.edit(1)
    user.set(concepts.window.view.rows["balancing"], "2.5")
    user.set(concepts.window.view.rows["image.enable_random_flip"], "true")
    changed = app.form.config.concepts[1]
    assert changed.balancing == 2.5 and changed.image.enable_random_flip
    user.set(concepts.window.view.rows["balancing"], "-1")
    assert app.form.config.concepts[1].balancing == 2.5, "what is not allowed does not count"
    user.set(concepts.window.view.rows["balancing"], "2.5")
    concepts.cards[0]["switch"].invoke()
    assert not app.form.config.concepts[0].enabled
    concepts.cards[0]["duplicate"].invoke()
    assert [one.name for one in app.form.config.concepts] == ["first", "first copy", "other"]
    concepts.cards[0]["remove"].invoke()
    assert [one.name for one in app.form.config.concepts] == ["first copy", "other"]
    again = train_config_from_dict(json.loads(json.dumps(app.form.config.to_dict())))
    assert again.concepts == app.form.config.concepts


@pytest.fixture
def drop(app, until):
    """drop(widget, *paths): lets go of files over a widget, as a file manager does; "accepted" or "refused"."""

    def act(widget, *paths: Path) -> str:
        app.geometry("1280x800+0+0")
        until(app, lambda: (app.winfo_rootx(), app.winfo_width()) == (0, 1280) and widget.winfo_ismapped())
        app.lift()
        app.update()
        place = widget.winfo_rootx() + widget.winfo_width() // 2, widget.winfo_rooty() + widget.winfo_height() // 2
        command = [sys.executable, str(Path(__file__).with_name("drop_source.py")), *map(str, place)]
        source = subprocess.Popen([*command, *(path.as_uri() for path in paths)], stdout=subprocess.PIPE, text=True)
        until(app, lambda: source.poll() is not None)
        app.update()
        return source.communicate()[0].strip()

    return act


def test_folders_are_dropped_from_a_file_manager(app, concepts, folder, drop, tmp_path, until):
    assert app.tools.drops.works
    other = shutil.copytree(folder, tmp_path / "an {odd} name é")
    assert drop(concepts, other, next(folder.glob("*.png"))) == "accepted"
    until(app, lambda: [one.name for one in app.form.config.concepts] == ["first", "an {odd} name é"])
    assert app.form.config.concepts[1].path == str(other)
    assert ".png. Drop the folder" in app.problems.news and "Added: an {odd} name é." in app.problems.news
    # in sight, wherever the tab was scrolled to
    app.guide.go_to("base_model_name")
    app.update()
    assert drop(app.views["model"][0].rows["base_model_name"].control.entry, other) == "accepted"
    assert app.form.config.base_model_name == str(other)
    assert drop(app.tabs, other) == "refused"


def test_the_window_shows_variations_captions_and_the_check(app, concepts, until, folder):
    concepts.edit(0)
    window = concepts.window
    until(app, lambda: window.preview is not None)
    assert window.preview.varied.size == (32, 32) and "brightness" not in window.preview.facts
    before = window.preview.varied.tobytes()
    window.form.set_value("image.random_brightness_max_strength", -0.5)
    window.form.set_value("image.enable_fixed_brightness", True)
    until(app, lambda: "brightness × 0.50" in window.preview.facts)
    assert window.preview.varied.tobytes() != before
    first = window.preview
    window.following.invoke()
    until(app, lambda: window.preview is not first)
    assert window.images.shown.place == 1
    path = window.images.shown.file
    window.caption.delete("1.0", "end")
    window.caption.insert("1.0", "a new caption")
    app.update()
    assert not path.exists() or "a new caption" not in path.read_text(), "nothing is written without being asked"
    window.save.invoke()
    assert path.read_text(encoding="utf-8") == "a new caption\n"
    (folder / "broken.png").write_bytes(b"no image")
    window.show_page("dataset check")
    until(app, lambda: "rejected" in window.check_heading.cget("text"))
    assert "broken.png" in window.check_text.text and "Buckets:" in window.check_text.text


def test_the_first_folder_makes_the_list_that_a_preset_leaves_to_its_user(app, folder, until, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    app.preset_actions.open("SDXL/sdxl 1.0 LoRA")
    (problem,) = app.form.check()
    assert "add a folder of images in the tab concepts" in problem.text
    app.guide.go_to_problem(problem.path)
    assert app.tabs.current == "data"
    app.guide.go_to_problem("concepts.0.path")
    assert app.tabs.current == "concepts"
    view = app.views["concepts"][1]
    view.add_folders([folder])
    until(app, lambda: len(view.cards) == 1)
    # whoever began the list is not asked where it stands
    view.edit(0)
    assert view.window is not None
    view.window.close()
    (listed,) = json.loads(Path("training_concepts/concepts.json").read_text(encoding="utf-8"))
    assert listed["path"] == "pictures" and not app.form.check()


def test_a_list_in_a_file_is_changed_there_or_copied(app, concepts, folder, tmp_path, until):
    from modules.ui.AskWindow import AskWindow

    path = tmp_path / "concepts.json"
    path.write_text(json.dumps([{"path": str(folder), "name": "filed"}]))
    app.form.config.concepts = None
    app.form.config.concept_file_name = str(path)
    app.form.changed("")

    def answer(text: str) -> None:
        app.after(300, lambda: next(c for c in app.winfo_children() if isinstance(c, AskWindow)).give(text))
        concepts.cards[0]["duplicate"].invoke()

    answer("Cancel")
    assert len(json.loads(path.read_text())) == 1
    # a list that could not be read is none that was begun here
    whole = path.read_text()
    path.write_text("{ broken")
    concepts.refresh()
    concepts.add_folders([folder])
    until(app, lambda: not app.worker.busy)
    assert path.read_text() == "{ broken" and "Mend the file" in app.problems.news
    path.write_text(whole)
    concepts.refresh()
    answer("Cancel")
    assert len(json.loads(path.read_text())) == 1
    answer("Change the file")
    assert len(json.loads(path.read_text())) == 2 and app.form.config.concepts is None
    concepts._asked_for = ""
    answer("Copy into this config")
    assert len(json.loads(path.read_text())) == 2 and len(app.form.config.concepts) == 3


def test_a_concept_in_a_file_can_be_looked_at_before_anything_is_asked(app, concepts, folder, until, user, tmp_path):
    from modules.ui.AskWindow import AskWindow

    path = tmp_path / "concepts.json"
    path.write_text(json.dumps([{"path": str(folder), "name": "filed"}]))
    app.form.config.concepts = None
    app.form.config.concept_file_name = str(path)
    app.form.changed("")
    concepts.edit(0)
    window = concepts.window
    row, asked = window.view.rows["balancing"], []

    def answer(text: str) -> None:
        def give() -> None:
            (question,) = [child for child in window.winfo_children() if isinstance(child, AskWindow)]
            asked.append(text)
            question.give(text)

        app.after(300, give)

    until(app, lambda: app.focus_get() is window)
    row.control.focus.focus_force()
    answer("Cancel")
    row.control.entry.delete(0, "end")
    row.control.entry.insert(0, "3")
    app.update()
    assert asked == ["Cancel"] and row.control.shown() == "1" and "balancing" not in path.read_text()
    answer("Change the file")
    user.set(row, "25")
    assert asked == ["Cancel", "Change the file"], "asked at the first key only"
    assert json.loads(path.read_text())[0]["balancing"] == 25 and concepts.window is window
    until(app, lambda: app.focus_get() is row.control.focus)


def test_samples_and_embeddings(app, concepts, user):
    app.show_tab("sampling")
    samples = app.views["sampling"][1]
    samples.add_button.invoke()
    user.set(samples.window.view.rows["prompt"], "a cat")
    user.set(samples.window.view.rows["width"], "64")
    assert [(one.prompt, one.width) for one in app.form.config.samples] == [("a cat", 64)]
    samples.window.destroy()
    assert samples.cards[0]["title"].cget("text") == "a cat"
    app.show_tab("embeddings")
    embeddings = app.views["embeddings"][1]
    embeddings.add_button.invoke()
    embeddings.window.destroy()
    embeddings.cards[0]["switch"].invoke()
    assert [(one.placeholder, one.train) for one in app.form.config.additional_embeddings] == [("<embedding1>", False)]
