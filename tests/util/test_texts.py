"""Texts of the window, with what stands in their braces, in its language."""

from modules.util import texts
from modules.util.texts import ENGLISH, all_of, any_of, choose_language, language, languages, later, tr, tr_n

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
