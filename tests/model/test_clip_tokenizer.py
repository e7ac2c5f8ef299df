"""The shipped tokenizer against known facts of CLIP's vocabulary."""

from modules.model.clip_tokenizer import MERGES, clip_merges, clip_tokenizer, clip_vocabulary

import pytest


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def test_sizes():
    assert len(clip_merges()) == 48_894
    assert len(clip_vocabulary()) == 49_408
    assert MERGES.stat().st_size < 700_000


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # as in OpenAI's and Hugging Face's examples
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("hello world!", [3306, 1002, 256]),
        ("", []),
        ("!", [256]),
    ],
)
def test_known_ids(tokenizer, text, ids):
    assert tokenizer(text).input_ids == [49406, *ids, 49407]


def test_padding_and_truncation(tokenizer):
    first, second = tokenizer, clip_tokenizer("!")
    options = {"padding": "max_length", "truncation": True}
    # SD 1 pads with the end token, SD 2 (OpenCLIP) with zeros, which is `!` at the inside of a word
    assert first("cat", **options).input_ids == [49406, 2368] + [49407] * 75
    assert second("cat", **options).input_ids == [49406, 2368, 49407] + [0] * 74
    long = first("cat " * 100, **options).input_ids
    assert len(long) == 77 and long[-1] == 49407 and long[-2] == 2368


def test_every_text_survives(tokenizer):
    text = "ünïcode, 日本語 and 😀 — 3.14"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
        " ", ""
    )
