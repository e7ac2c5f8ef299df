"""The window in another language."""

from modules.ui.tabs import TABS
from modules.util.texts import ENGLISH, LANGUAGES, SYSTEM, choose_language

import pytest


@pytest.fixture
def german(app):
    app.top._looks.invoke()
    app.tools.popup.choose("language de")
    yield app
    app.show_language(ENGLISH)
    choose_language(ENGLISH)


def row(app, tab: str, path: str):
    return app.views[tab][0].rows[path]


def test_the_gear_changes_all_texts_and_the_choice_is_kept(german, ui_root):
    app = german
    assert app.settings.language == "de"
    assert app.tabs.buttons["general"].cget("text") == "Allgemein"
    assert app.problems.start.cget("text") == "Training starten"
    assert row(app, "general", "workspace_dir").label.cget("text") == "Arbeitsordner"
    assert app.hints.help("batch_size").startswith("Bilder in einem Durchlauf.")
    assert "Erwartet: eine ganze Zahl, mindestens 1." in app.hints.help("batch_size")
    # what an empty field stands for is read from the help
    assert app.hints.placeholder("clip_grad_norm") == "keine Begrenzung"
    assert app.hints.placeholder("unet.learning_rate") == "„Lernrate“ des Laufs"
    assert app.hints.choices("training_method")[0].label.startswith("Volles Finetuning")
    assert app.form.set_text("batch_size", "0") == "0 gefunden, erwartet: eine ganze Zahl, mindestens 1"
    app.form.set_text("batch_size", "8")
    # what the model of the run said before
    app.show_tab("run")
    assert app.views["run"][1].status.cget("text") == "Nichts läuft."
    app.show_language(ENGLISH)
    assert app.views["run"][1].status.cget("text") == "Nothing runs."
    assert app.tabs.buttons["general"].cget("text") == "general"


def test_the_gear_offers_what_the_system_speaks(german, ui_root, monkeypatch):
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    app = german
    app.show_language(ENGLISH)
    app.top._looks.invoke()
    app.tools.popup.choose("language system")
    assert app.settings.language == SYSTEM and app.tabs.buttons["general"].cget("text") == "Allgemein"
    app.top._looks.invoke()
    offered = [line.strip() for line in app.tools.popup.listbox.get(0, "end")]
    assert offered[-3:] == ["✓ System (Deutsch)", "English", "Deutsch"]
    app.tools.popup.close()


def test_options_are_found_by_both_languages(german):
    for words in ("Batchgröße", "batch size", "bilder durchlauf"):
        german.top.search._text.set(words)
        assert german.top.search.found[0].path == "batch_size", words
        assert german.top.search.found[0].title == "Batchgröße"
    german.top.search.clear()


def test_buttons_of_questions_are_known_by_their_english_texts(german):
    german.form.set_text("epochs", "3")
    shown = []

    def answer() -> None:
        (window,) = (child for child in german.winfo_children() if type(child).__name__ == "AskWindow")
        shown.extend(button.cget("text") for button in window.buttons.values())
        window.give("Open")

    german.after(50, answer)
    german.preset_actions.open("Tiny/tiny LoRA ADAMW_ADV")
    assert shown == ["Abbrechen", "Öffnen"] and german.session.name == "Tiny/tiny LoRA ADAMW_ADV"


def test_longer_words_are_not_cut(german, until):
    """Every control of every tab ends inside the window's width, with all options."""
    app = german
    app.geometry("1280x800+0+0")
    until(app, lambda: (app.winfo_width(), app.winfo_height()) == (1280, 800))
    app.show_view("all")
    edge = app.winfo_rootx() + app.winfo_width()
    for tab in TABS:
        app.show_tab(tab.name)
        app.update()
        form = app.views[tab.name][0]
        for one in form.rows.values() if form is not None else ():
            if one.visible:
                frame = one.control.frame
                assert frame.winfo_rootx() + frame.winfo_width() <= edge, (tab.name, one.one.path)
                assert one.control.focus.winfo_width() >= 30, (tab.name, one.one.path)
                assert one.label.winfo_rootx() + one.label.winfo_width() <= frame.winfo_rootx() + 2, one.one.path
    for button in (*app.tabs.buttons.values(), app.top._looks, app.problems.start):
        assert button.winfo_width() >= button.winfo_reqwidth()
        assert button.winfo_rootx() + button.winfo_width() <= edge


def test_a_language_that_is_missing_is_told(app, monkeypatch, tmp_path):
    monkeypatch.setattr("modules.util.texts.choose_language.__defaults__", (tmp_path,))
    app.show_language("de")
    assert f"{tmp_path / 'de.po'} is missing" in app.problems.news
    assert app.problems.start.cget("text") == "Start training"
    monkeypatch.setattr("modules.util.texts.choose_language.__defaults__", (LANGUAGES,))
    app.show_language(ENGLISH)
