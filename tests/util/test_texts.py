"""Texts of the window, with what stands in their braces, in its language."""

from modules.util import system_language, texts
from modules.util.system_language import best_language, wanted_languages
from modules.util.texts import ENGLISH, SYSTEM, all_of, any_of, choose_language, language, languages, later, tr, tr_n

import pytest

HEAD = r"""# a language
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=3; plural=(n==1 ? 0 : n<5 ? 1 : 2);\n"
"X-Name: Xxish\n"

"""
TEXTS = r"""msgid "Save"
msgstr "Xave"

msgid "{count} of {all} pictures"
msgstr "{all}: {count}"

msgid "{file} is gone"
msgstr "{fle} x"

msgid "{a} left"
msgstr "x {a"

msgid "not yet"
msgstr ""

#, fuzzy
msgid "unsure"
msgstr "x"

msgid "{n} picture"
msgid_plural "{n} pictures"
msgstr[0] "one x"
msgstr[1] "few {n} x"
msgstr[2] "many {n} x"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "xx.po").write_text(HEAD + TEXTS, encoding="utf-8")
    yield tmp_path
    choose_language(ENGLISH)


def test_values_stand_in_braces():
    assert tr("{count} of {all} pictures", count=3, all=5) == "3 of 5 pictures"
    assert tr("{as} it is") == "{as} it is"
    # any name may be a value's
    assert tr("{text} {one}", text=1, one=2) == "1 2"


def test_one_and_many():
    assert [tr_n("{n} picture of {name}", "{n} pictures of {name}", n, name="A") for n in (0, 1, 2)] == [
        "0 pictures of A", "1 picture of A", "2 pictures of A",
    ]  # fmt: skip


def test_lists():
    assert all_of(["a", "b", "c"]) == "a and b and c" and any_of(["a", "b"]) == "a or b"
    assert all_of(["a"]) == "a" and any_of([]) == ""


def test_another_language(folder):
    assert languages(folder) == {"en": "English", "xx": "Xxish"}
    assert choose_language("xx", folder) == "" and language() == "xx"
    assert tr("Save") == "Xave" and later("Save") == "Save"
    assert tr("{count} of {all} pictures", count=3, all=5) == "5: 3"
    assert [tr_n("{n} picture", "{n} pictures", n) for n in (1, 2, 7)] == ["one x", "few 2 x", "many 7 x"]
    assert choose_language(ENGLISH, folder) == "" and tr("Save") == "Save"


def test_what_a_catalogue_lacks_or_has_wrong_stays_english(folder):
    choose_language("xx", folder)
    assert tr("") == ""
    assert tr("unknown") == "unknown" and tr("not yet") == "not yet" and tr("unsure") == "unsure"
    assert tr("{file} is gone", file="a") == "a is gone"
    assert tr("{a} left", a=3) == "3 left"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "missing"),
        (b"\xff\xfe", "cannot be read"),
        (b'msgid "Save"\nno keyword', "cannot be read"),
        (HEAD.replace("n==1 ?", "import os").encode(), "cannot be read"),
    ],
)
def test_a_broken_catalogue_is_told_and_english_stays(folder, content, why):
    choose_language("xx", folder)
    path = folder / "xx.po"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    told = choose_language("xx", folder)
    assert why in told and str(path) in told
    assert language() == ENGLISH and tr("Save") == "Save"


def test_german_is_there():
    assert languages()["de"] == "Deutsch" and (texts.LANGUAGES / "de.po").is_file()


@pytest.mark.parametrize(
    ("variables", "system", "expected"),
    [
        ({"LANG": "de_DE.UTF-8"}, "linux", ["de_DE.UTF-8"]),
        ({"LANG": "de_DE.UTF-8", "LC_MESSAGES": "fr_FR", "LC_ALL": ""}, "linux", ["fr_FR"]),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "en_GB.UTF-8"}, "linux", ["en_GB.UTF-8"]),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "nds:de:en"}, "darwin", ["nds", "de", "en"]),
        ({"LANG": "C.UTF-8", "LANGUAGE": "de"}, "linux", ["C.UTF-8"]),
        # of a shell that was brought along; Windows' own setting is asked
        ({"LANG": "C.UTF-8", "LANGUAGE": "de"}, "win32", ["de"]),
        ({}, "linux", []),
    ],
)
def test_what_the_system_wants(variables, system, expected):
    assert wanted_languages(variables, system) == expected


def test_settings_of_systems_without_variables(monkeypatch, tmp_path):
    told = tmp_path / "languages"
    told.write_text('(\n    "pt-BR",\n    de,\n    "en-US"\n)\n')
    monkeypatch.setattr(system_language, "MACOS", ("cat", str(told)))
    assert wanted_languages({}, "darwin") == ["pt-BR", "de", "en-US"]
    told.unlink()
    assert wanted_languages({}, "darwin") == []
    kernel = type("Kernel", (), {"GetUserDefaultUILanguage": lambda self: 0x0407})()
    monkeypatch.setattr("ctypes.windll", type("Libraries", (), {"kernel32": kernel})(), raising=False)
    assert wanted_languages({"LANG": "en_US.UTF-8"}, "win32") == ["de_DE"]


def test_the_best_language_that_there_is():
    known = ["en", "de", "pt", "pt_BR", "zh_TW"]
    found = {
        name: best_language([name], known, "en")
        for name in ("de_AT.UTF-8", "de", "DE-de", "pt-BR", "pt_PT@euro", "fr_FR", "C", "POSIX", "", "../de", "zh_TW")
    }
    assert found == {
        "de_AT.UTF-8": "de", "de": "de", "DE-de": "de", "pt-BR": "pt_BR", "pt_PT@euro": "pt", "fr_FR": "en",
        "C": "en", "POSIX": "en", "": "en", "../de": "en", "zh_TW": "zh_TW",
    }  # fmt: skip
    assert best_language(["fr", "en_US", "de"], known, "en") == "en" and best_language([], known, "en") == "en"
    assert best_language(["fr", "de"], known, "en") == "de"


@pytest.mark.parametrize(("wanted", "code"), [("xx_YY", "xx"), ("fr:xx", "xx"), ("fr", "en")])
def test_the_system_chooses(folder, monkeypatch, wanted, code):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", wanted)
    assert choose_language(SYSTEM, folder) == "" and language() == code
    assert tr("Save") == ("Xave" if code == "xx" else "Save")
