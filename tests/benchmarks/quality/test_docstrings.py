"""The texts are real, the same each time, balanced, and none of them leaks from one split into another."""

from collections import Counter

from benchmarks.quality.docstrings import KNOWN_SHARE, NAMES, WORDS, clean, runs_of, text_set
from modules.util.UserError import UserError

import pytest

SPLITS = ("train", "tuning", "validation")


@pytest.fixture(scope="module")
def texts():
    return text_set(12, 4, 6)


def test_every_split_is_balanced(texts):
    assert len(texts.labels) == 10
    for name, count in zip(SPLITS, (12, 4, 6), strict=True):
        found = Counter(label for _, label in getattr(texts, name))
        assert found == dict.fromkeys(range(len(texts.labels)), count)


def test_nothing_is_in_two_splits(texts):
    for first, second in (("train", "tuning"), ("train", "validation"), ("tuning", "validation")):
        assert not texts.files[first] & texts.files[second]
    everything = [text for name in SPLITS for text, _ in getattr(texts, name)]
    assert len(set(everything)) == len(everything)
    trained = set().union(*(runs_of(text) for text, _ in texts.train))
    shares = [len(runs_of(text) & trained) / len(runs_of(text)) for text, _ in texts.validation]
    # a text of the training set that came later may repeat a part of one that is asked, never more than half of itself
    assert sum(shares) / len(shares) < KNOWN_SHARE / 2


def test_the_answer_is_not_in_the_text(texts):
    for name in SPLITS:
        for text, _ in getattr(texts, name):
            assert not NAMES.search(text) and len(text.split()) in WORDS and "`" not in text


def test_the_same_each_time(texts):
    again = text_set(12, 4, 6)
    assert again == texts and again.digest == texts.digest and len(again.digest) == 16
    assert text_set(12, 4, 5).digest != texts.digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Draw with :func:`~matplotlib.pyplot.plot`, as ``numpy`` does.", "Draw with plot, as library does."),
        ("A *scipy* array\n   of PyTorch's", "A library array of library"),
        ("Scaled by 0.5, e.g. in `torch.nn.Linear`", "Scaled by 0.5, e.g. in Linear"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


def package(folder, files: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True)
    for name, docstrings in files.items():
        body = "\n\n".join(f'def f{k}():\n    """{text}\n\n    More."""' for k, text in enumerate(docstrings))
        (folder / name).write_text(body, encoding="utf-8")


def sentence(topic: str, number: int) -> str:
    return f"{topic}{number} reads {topic} file{number} and writes other{number} {topic}s{number}"


def test_copies_and_foreign_files_are_left_out(tmp_path):
    copied = "Compute the very same thing as that other function does"
    package(tmp_path / "a", {f"{n}.py": [sentence("apple", n), copied, "too short"] for n in range(6)})
    package(tmp_path / "b", {f"{n}.py": [sentence("pear", n), copied] for n in range(6)})
    package(tmp_path / "a" / "tests", {"x.py": [sentence("secret", n) for n in range(9)]})
    (tmp_path / "a" / "template.py").write_text("{{ no python }", encoding="utf-8")
    found = text_set(2, 1, 1, {"a": "a", "b": "b"}, tmp_path)
    everything = [text for name in SPLITS for text, _ in getattr(found, name)]
    assert sum(text == copied for text in everything) <= 1
    assert not any("secret" in text or text == "too short" for text in everything)
    assert all("apple" in text or text == copied for text, label in found.train if label == 0)


def test_too_few_texts_are_told(tmp_path):
    package(tmp_path / "a", {"x.py": [sentence("apple", 0)]})
    with pytest.raises(UserError, match="found 0 texts for tuning, expected 1. Install what requirements-dev.txt"):
        text_set(1, 1, 1, {"a": "a"}, tmp_path)
