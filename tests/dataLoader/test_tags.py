"""Laws of tag dropout, shuffling and capitals."""

import random
import re
from collections import Counter

from modules.dataLoader.captions import special_tags
from modules.dataLoader.tags import drop_tags, is_special, shuffle_tags, split_tags, vary_capitals
from modules.util.config.ConceptTextConfig import ConceptTextConfig
from modules.util.enum.TagDropoutMode import TagDropoutMode
from modules.util.enum.TagDropoutSpecialTagsMode import TagDropoutSpecialTagsMode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LISTS = st.lists(st.text("abcdXYZ ", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32)
KEEP = st.integers(0, 9)
WHITE, BLACK = TagDropoutSpecialTagsMode.WHITELIST, TagDropoutSpecialTagsMode.BLACKLIST


def is_subsequence(short, long):
    remaining = iter(long)
    return all(tag in remaining for tag in short)


@settings(max_examples=50, deadline=None)
@given(LISTS, SEEDS, KEEP)
def test_shuffle_is_a_permutation_that_keeps_the_first(tags, seed, keep):
    result = split_tags(shuffle_tags(", ".join(tags), random.Random(seed), keep=keep), ",")
    assert result[:keep] == tags[:keep]
    assert Counter(result) == Counter(tags)


@settings(max_examples=50, deadline=None)
@given(LISTS, SEEDS, KEEP, st.floats(0, 1), st.sampled_from(TagDropoutMode), st.sampled_from(TagDropoutSpecialTagsMode))
def test_dropout_keeps_order_first_and_special_tags(tags, seed, keep, probability, mode, special_mode):
    special = tags[::2]
    result = split_tags(
        drop_tags(
            ",".join(tags),
            random.Random(seed),
            probability=probability,
            mode=mode,
            special=special,
            special_mode=special_mode,
            keep=keep,
        ),
        ",",
    )
    result = [] if result == [""] else result
    assert result[:keep] == tags[:keep] and is_subsequence(result, tags)
    dropped = Counter(tags) - Counter(result)
    if special_mode == WHITE:
        assert not set(dropped) & set(special)
    if special_mode == BLACK:
        assert set(dropped) <= set(special)


@pytest.mark.parametrize("mode", TagDropoutMode)
def test_probabilities(mode):
    tags, drawn, probability = ["keep", "a", "b", "c", "d"], 4000, 0.6
    rng, counts, full = random.Random(1), Counter(), Counter()
    for _ in range(drawn):
        left = split_tags(drop_tags(",".join(tags), rng, probability=probability, mode=mode, keep=1), ",")
        counts.update(left)
        full[len(left)] += 1
    shares = [1 - counts[tag] / drawn for tag in tags]
    weights = [0.25, 0.5, 0.75, 1.0] if mode == TagDropoutMode.RANDOM_WEIGHTED else [1.0] * 4
    # four standard deviations of a share out of 4000
    assert shares == pytest.approx([0.0] + [probability * weight for weight in weights], abs=0.032)
    if mode == TagDropoutMode.FULL:
        assert set(full) == {1, 5}


def test_patterns_and_weights_in_parentheses():
    options = {"probability": 1.0, "special_mode": WHITE}
    caption, rng = "red hair, (blue eyes), hat", random.Random(0)
    assert drop_tags(caption, rng, special=[re.compile(".* eyes")], **options) == "(blue eyes)"
    assert drop_tags(caption, rng, special=["blue eyes", "hat"], **options) == "(blue eyes), hat"
    # a pattern must match the whole tag
    assert drop_tags(caption, rng, special=[re.compile("red")], **options) == ""


def test_delimiters_keep_their_spacing():
    rng = random.Random(0)
    assert shuffle_tags("a,b", rng, keep=2) == "a,b" and shuffle_tags("a, b", rng, keep=2) == "a, b"
    assert drop_tags("a | b | c", rng, probability=0, delimiter="|") == "a | b | c".replace(" |", "|")


@settings(max_examples=50, deadline=None)
@given(LISTS, SEEDS, st.floats(0, 1), st.booleans())
def test_capitals_change_only_case(tags, seed, probability, lowercase):
    styles = ["capslock", "title", "first", "random"]
    result = vary_capitals(
        ",".join(tags), random.Random(seed), probability=probability, styles=styles, lowercase=lowercase
    )
    assert result.lower() == ",".join(tags).lower()


@pytest.mark.parametrize(
    ("style", "expected"), [("capslock", "RED HAIR, HAT"), ("title", "Red Hair, Hat"), ("first", "Red hair, Hat")]
)
def test_capital_styles(style, expected):
    assert vary_capitals("red HAIR, hat", random.Random(0), probability=1, styles=[style]) == expected
    assert vary_capitals("red HAIR, hat", random.Random(0), probability=0, styles=[style]) == "red HAIR, hat"
    assert vary_capitals("red HAIR, hat", random.Random(0), probability=0, styles=[style], lowercase=True) == (
        "red hair, hat"
    )


def test_random_style_mixes_case():
    result = vary_capitals("abcdefghijklmnopqrstuvwxyz", random.Random(0), probability=1, styles=["random"])
    assert result != result.lower() and result != result.upper()


def test_special_tags_that_are_expressions():
    text = ConceptTextConfig(tag_dropout_special_tags=r"\d{1,2}girls?, (a+)+b", tag_dropout_special_tags_regex=True)
    special = special_tags(text)
    assert [entry.source for entry in special] == [r"\d{1,2}girls?", "(a+)+b"]
    assert is_special("12girls", special) and is_special("(aab)", special)
    assert not is_special("123girls", special) and not is_special("a" * 200, special)
