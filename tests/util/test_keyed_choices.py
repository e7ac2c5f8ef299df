"""Choices that are drawn many at once, by other processes, are those of single generators."""

import sys

from modules.util import keyed_choices
from modules.util.keyed_choices import ChoicesAhead
from modules.util.keyed_random import keyed_random

import pytest

HEADS = [("image", "resolution", 7, name) for name in ("a.png", "ä \ud800\n.png", "", "c/d.png", "😀")]


@pytest.mark.parametrize("options", [1, 2, 3, 1000])
def test_they_are_those_of_single_generators(options):
    found = keyed_choices.keyed_choices(HEADS, 12, options)
    assert list(found) == [keyed_random(*head, number).choice(range(options)) for head in HEADS for number in range(12)]


def test_other_processes_draw_the_same(monkeypatch):
    expected = keyed_choices.keyed_choices(HEADS, 12, 3)
    assert ChoicesAhead(HEADS, 12, 3).finish() == expected, "too few for a process"
    here = keyed_choices.keyed_choices
    monkeypatch.setattr(keyed_choices, "keyed_choices", lambda *asked: pytest.fail("drawn by this process"))
    assert ChoicesAhead(HEADS, 12, 3, processes=2).finish() == expected
    monkeypatch.setattr(keyed_choices, "keyed_choices", here)
    monkeypatch.setattr(sys, "executable", "/nothing/here")
    assert ChoicesAhead(HEADS, 12, 3, processes=3).finish() == expected, "where none can be started"
