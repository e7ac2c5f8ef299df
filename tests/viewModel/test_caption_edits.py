"""Search, replace, add and remove in captions, and counts of tags and words."""

from modules.viewModel.caption_edits import Action, Edit, Form, Within, count_tags, count_words, holds

import pytest

ONE, JOINED = Form(), Form(each_line=False)
ANY, WORDS, TAGS = Within.ANYWHERE, Within.WORDS, Within.TAGS


@pytest.mark.parametrize(
    ("caption", "text", "by", "within", "after"),
    [
        ("a red car, reddish", "red", "blue", ANY, "a blue car, bluedish"),
        ("a red car, reddish", "Red", "blue", WORDS, "a blue car, reddish"),
        ("red, a red car,red", "red", "blue", TAGS, "blue, a red car"),
        ("a red car", "red", r"\1 \g<0>", ANY, r"a \1 \g<0> car"),
        ("1.5 (x)", "(x)", "", ANY, "1.5 "),
        ("a red car", "red", "", WORDS, "a car"),
        ("a car, red", "red", "", WORDS, "a car,"),
        ("a cat\na red cat", "cat", "dog", WORDS, "a dog\na red dog"),
        ("blue, red", "red", "blue", TAGS, "blue"),
        ("größe, Öl", "öl", "oil", WORDS, "größe, oil"),
        ("a cat", "dog", "x", ANY, "a cat"),
        ("a cat", "  ", "x", ANY, "a cat"),
    ],
)
def test_replace(caption, text, by, within, after):
    assert Edit(Action.REPLACE, text, by, within).apply(caption, ONE) == after


def test_capitals_count_only_if_wished():
    edit = Edit(Action.REPLACE, "Red", "blue", ANY, match_case=True)
    assert edit.apply("red Red", ONE) == "red blue"
    assert Edit(Action.REMOVE, "Red", within=TAGS, match_case=True).apply("red, Red", ONE) == "red"


@pytest.mark.parametrize(
    ("caption", "after"),
    [
        ("red, a car", "a car"),
        ("a car, red", "a car"),
        ("a, red, b", "a, b"),
        ("a,red,b", "a,b"),
        ("red", ""),
        ("a red", "a red"),
    ],
)
def test_a_tag_is_removed_with_its_delimiter(caption, after):
    assert Edit(Action.REMOVE, "red", within=TAGS).apply(caption, ONE) == after


@pytest.mark.parametrize(
    ("action", "within", "form", "caption", "after"),
    [
        (Action.FRONT, TAGS, ONE, "a woman", "ohwx, a woman"),
        (Action.FRONT, WORDS, ONE, "a woman", "ohwx a woman"),
        (Action.END, TAGS, ONE, "a woman,", "a woman, ohwx"),
        (Action.END, WORDS, ONE, "a woman", "a woman ohwx"),
        (Action.FRONT, TAGS, ONE, "", "ohwx"),
        (Action.FRONT, TAGS, ONE, "a woman, ohwx", "a woman, ohwx"),
        (Action.FRONT, WORDS, ONE, "OHWX a woman", "OHWX a woman"),
        (Action.FRONT, WORDS, ONE, "ohwxy woman", "ohwx ohwxy woman"),
        (Action.END, WORDS, ONE, "a woman ohwx", "a woman ohwx"),
        (Action.FRONT, TAGS, ONE, "one\n\ntwo", "ohwx, one\n\nohwx, two"),
        (Action.FRONT, TAGS, JOINED, "one\ntwo", "ohwx, one\ntwo"),
        (Action.END, TAGS, JOINED, "one\ntwo", "one\ntwo, ohwx"),
        (Action.FRONT, TAGS, Form(";"), "one;two", "ohwx; one;two"),
    ],
)
def test_add(action, within, form, caption, after):
    edit = Edit(action, "ohwx", within=within)
    assert edit.apply(caption, form) == after
    assert edit.apply(after, form) == after, "not twice"


def test_search():
    assert holds("a Red car", "red c", ANY, ONE) and not holds("a redder car", "red", WORDS, ONE)
    assert holds("a, red ,b", "RED", TAGS, ONE) and not holds("a red car, b", "red", TAGS, ONE)
    assert not holds("red", "Red", ANY, ONE, match_case=True)


def test_counts():
    captions = ["a cat, red", "a cat,red,red", "dog's bone\nred", ""]
    assert count_tags(captions, ONE) == [("red", 3), ("a cat", 2), ("dog's bone", 1)]
    assert count_words(captions) == [("red", 3), ("a", 2), ("cat", 2), ("bone", 1), ("dog's", 1)]
