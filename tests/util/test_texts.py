"""Texts of the window, with what stands in their braces."""

from modules.util.texts import tr, tr_n


def test_values_stand_in_braces():
    assert tr("{count} of {all} pictures", count=3, all=5) == "3 of 5 pictures"
    assert tr("{as} it is") == "{as} it is"


def test_one_and_many():
    assert [tr_n("{n} picture of {name}", "{n} pictures of {name}", n, name="A") for n in (0, 1, 2)] == [
        "0 pictures of A", "1 picture of A", "2 pictures of A",
    ]  # fmt: skip
