"""Lines of text for places that are too small for all of it."""

from modules.viewModel.text_lines import lines_gone, shortened

import pytest


@pytest.mark.parametrize(
    ("old", "new", "gone"),
    [
        ("", "", 0),
        ("", "ab", 0),
        ("ab", "abc", 0),
        ("abc", "bcd", 1),
        ("abc", "c", 2),
        ("abc", "xyz", 3),
        ("abc", "", 3),
        ("aaa", "aab", 1),
        ("abab", "abc", 2),
        ("abc", "ab", 3),
    ],
)
def test_how_a_log_goes_on(old, new, gone):
    assert lines_gone(list(old), list(new)) == gone
    rest = list(old)[gone:]
    assert list(new)[: len(rest)] == rest


def test_a_line_ends_where_there_is_no_more_room():
    text = "one two three"
    assert shortened(text, len(text), len) == text and shortened("", 0, len) == ""
    for room in range(1, len(text)):
        short = shortened(text, room, len)
        assert len(short) <= room and short.endswith("…") and text.startswith(short[:-1])
        # a space at the end would be of no use
        assert len(short) >= room - 1
    assert shortened(text, 0, len) == "…"
