"""Regular expressions of users: lists of them, and patterns on which Python's own matcher would take years."""

import re
import time

from scaled_optim.patterns import MOST_WAYS, Pattern, PatternError, split_patterns
from scaled_optim.rules.MuonAdv import MuonAdv, is_hidden_layer

import pytest

LONG = "a" * 200 + "!"
# every one of them has more than 2^28 ways of not matching LONG
ENDLESS = [
    r"(a+)+$", r"(a|a)+$", r"(a|aa)+$", r"(.*)*x", r".*.*.*.*.*.*x", r"((a?){20}){20}b", r"(?:a{1,30}){1,30}$",
    "a?" * 30 + "b", r"(?i)(A+)+$", r"(?=(a+)+$)", r"^(?!.*b)(\w+)+$",
]  # fmt: skip


@pytest.mark.parametrize("source", ENDLESS)
def test_patterns_that_would_never_end(source):
    start = time.monotonic()
    assert not Pattern(source).search(LONG)
    assert not Pattern(f"(?:{source.removeprefix('(?i)')})").fullmatch(LONG)
    assert time.monotonic() - start < 5  # it takes milliseconds; a loaded machine is slow


# `re` itself says what is right, on texts that are short enough for it
TEXTS = ["", "a", "b", "ab", "aab", "abab", "bbac", "a.b", "aab\nb", "down.0.to_q", "A b"]
ALIKE = [
    r"(a+)+$", r"(a|ab)*(b|c)*$", r"^(?:(?!c).)*(b|ab)+$", r"(\w+\.)+\w+$", r"(a*?b)+?c?$", r"(?<=a)(b+)+",
    r"((a|bb){2,3}){1,2}$", r"(?i:(A|B)+)+$", r"\b(a+b?)+\b", r"([^a]|a)+b", r"(^a|b$)+",
    r"(a|){3,}b*.*.*.*$", r"(.|\n)*b", r"(?s)(.+)+b",
    r"(?m)(^.*$)+.*.*.*",
]  # fmt: skip


@pytest.mark.parametrize("source", ALIKE)
def test_the_answer_is_that_of_re(source):
    pattern = Pattern(source)
    assert pattern._steps is not None, "this one would not try our own matcher"
    for text in TEXTS:
        assert pattern.search(text) == (re.search(source, text) is not None), text
        assert pattern.fullmatch(text) == (re.fullmatch(source, text) is not None), text


def test_usual_patterns_are_left_to_re():
    for source in (
        r"down_blocks\.\d{1,2}\.attentions",
        r".*attn.*to_[qkv]$",
        r"^(a|b)\.\d+\.",
        "|".join(map(str, range(999))),
    ):
        assert Pattern(source)._steps is None
    assert MOST_WAYS > 100 * 100


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("attn(", "unterminated"),
        ("(" * 3000 + ")" * 3000, "nested too deeply"),
        ("a{99999999999999999999}", "too large"),
        (r"(a+)+\1", "a reference to a group"),
        (r"(a+)+(a)(?(2)b|c)", "a condition"),
        ("(.*)*" * 300, "1500 characters"),
    ],
)
def test_refused_in_words(source, reason):
    with pytest.raises(PatternError, match=reason) as caught:
        Pattern(source)
    assert "\n" not in str(caught.value)


def test_work_has_a_bound():
    pattern = Pattern("(?=" * 3 + r"(.*)*x" + ")" * 3 + "|".join([r"(a*)*b"] * 90))
    start = time.monotonic()
    with pytest.raises(PatternError, match="too long"):
        pattern.search("a" * 1000)
    assert time.monotonic() - start < 20
    # no name and no tag
    assert not Pattern("a").search("a" * 1001)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (r"down\.\d{1,2}\.a, mid", [r"down\.\d{1,2}\.a", "mid"]),
        ("x{2,},y{,3}", ["x{2,}", "y{,3}"]),
        ("(a,b),[c,d],e", ["(a,b)", "[c,d]", "e"]),
        (r"\(a,b\),\[c", [r"\(a", r"b\)", r"\[c"]),
        ("[],x],[^],],y", ["[],x]", "[^],]", "y"]),
        ("a{,b,(c", ["a{", "b", "(c"]),
        ("[(],a),b", ["[(]", "a)", "b"]),
        ("((a,b),c),d", ["((a,b),c)", "d"]),
        (" , ,", []),
        ("", []),
    ],
)
def test_lists_are_split_outside_of_brackets(text, parts):
    assert split_patterns(text) == parts


def test_other_delimiters():
    assert split_patterns("a;b{1;2};c,d", ";") == ["a", "b{1;2}", "c,d"]
    assert split_patterns("a || b", "||") == ["a", "b"]


def test_muon_layers():
    assert is_hidden_layer("blocks.12.attn", r"blocks\.\d{1,2}\.attn", regex=True)
    assert not is_hidden_layer("blocks.123.attn", r"blocks\.\d{1,2}\.attn, mid", regex=True)
    # plain texts are split at every comma
    assert is_hidden_layer("x(a", "(a,b)", regex=False)
    assert not is_hidden_layer(LONG, "(a+)+$", regex=True)
    with pytest.raises(ValueError, match="muon_hidden_layers: found a\\(, expected a regular expression"):
        MuonAdv().check({**MuonAdv().defaults, "muon_hidden_layers": "a(", "muon_adam_regex": True})
