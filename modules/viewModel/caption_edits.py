"""What can be done to many captions at once, and how they are searched: pure functions of a caption's text."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from modules.dataLoader.tags import split_tags

WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Within(StrEnum):
    """What a text is looked for as."""

    ANYWHERE = "anywhere"
    WORDS = "words"
    TAGS = "tags"


class Action(StrEnum):
    """What is done to a caption."""

    REPLACE = "replace"
    FRONT = "front"
    END = "end"
    REMOVE = "remove"


@dataclass(frozen=True)
class Form:
    """How captions are written.

    Attributes:
        delimiter: between two tags, not empty.
        each_line: whether the lines of a file are captions of their own, of which one is drawn; else they are one.
    """

    delimiter: str = ","
    each_line: bool = True


@dataclass(frozen=True)
class Edit:
    """One change for many captions.

    Attributes:
        action: what is done.
        text: that is looked for, or added.
        by: what it is replaced by.
        within: what `text` is looked for as; what is added is put in as words or as a tag.
        match_case: whether capitals count.
    """

    action: Action
    text: str
    by: str = ""
    within: Within = Within.ANYWHERE
    match_case: bool = False

    def apply(self, caption: str, form: Form) -> str:
        """The caption after it. One that it does not concern comes back as it is."""
        if not self.text.strip():
            return caption
        if self.action in (Action.FRONT, Action.END):
            return _add(caption, self.text.strip(), self.action == Action.FRONT, self.within, form)
        by = "" if self.action == Action.REMOVE else self.by
        lines = (_replace(line, self.text, by, self.within, self.match_case, form) for line in caption.split("\n"))
        return "\n".join(lines)


def holds(caption: str, text: str, within: Within, form: Form, match_case: bool = False) -> bool:
    """Whether a text stands in a caption."""
    if within == Within.TAGS:
        wanted = _alike(text.strip(), match_case)
        return any(_alike(tag, match_case) == wanted for tag in tags_of(caption, form))
    if within == Within.WORDS:
        return _pattern(text.strip(), within, match_case).search(caption) is not None
    return _alike(text, match_case) in _alike(caption, match_case)


def tags_of(caption: str, form: Form) -> list[str]:
    """The tags of all lines of a caption, without empty ones."""
    return [tag for line in caption.split("\n") for tag in split_tags(line, form.delimiter) if tag]


def count_tags(captions: Iterable[str], form: Form) -> list[tuple[str, int]]:
    """(tag, number of captions with it), the usual ones first."""
    return _ordered(Counter(tag for caption in captions for tag in dict.fromkeys(tags_of(caption, form))))


def count_words(captions: Iterable[str]) -> list[tuple[str, int]]:
    """(word in small letters, number of captions with it), the usual ones first."""
    return _ordered(Counter(word for caption in captions for word in dict.fromkeys(WORD.findall(caption.lower()))))


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _alike(text: str, match_case: bool) -> str:
    return text if match_case else text.casefold()


@lru_cache(maxsize=64)
def _pattern(text: str, within: Within, match_case: bool, with_space: bool = False) -> re.Pattern[str]:
    found = re.escape(text)
    if within == Within.WORDS:
        found = rf"(?<!\w){found}(?!\w)"
    # two spaces would stay where a word was
    return re.compile(f"{found} ?" if with_space else found, 0 if match_case else re.IGNORECASE)


def _replace(line: str, text: str, by: str, within: Within, match_case: bool, form: Form) -> str:
    if within == Within.TAGS:
        return _replace_tag(line, text.strip(), by.strip(), match_case, form.delimiter)
    text = text.strip() if within == Within.WORDS else text
    gone = within == Within.WORDS and not by
    made, count = _pattern(text, within, match_case, gone).subn(lambda _: by, line)
    return made.strip() if gone and count else made


def _replace_tag(line: str, tag: str, by: str, match_case: bool, delimiter: str) -> str:
    """Whole tags; one that the line has already, or that becomes nothing, goes with its delimiter."""
    wanted, pieces, made, changed = _alike(tag, match_case), line.split(delimiter), [], False
    has = {piece.strip() for piece in pieces if _alike(piece.strip(), match_case) != wanted}
    for piece in pieces:
        core = piece.strip()
        if not core or _alike(core, match_case) != wanted:
            made.append(piece)
            continue
        changed = True
        if by and by not in has:
            has.add(by)
            made.append(piece.replace(core, by, 1))
    return delimiter.join(made).strip() if changed else line


def _add(caption: str, text: str, front: bool, within: Within, form: Form) -> str:
    lines = caption.split("\n")
    filled = [place for place, line in enumerate(lines) if line.strip()]
    if not filled:
        return text
    if not form.each_line and holds(caption, text, within, form):
        return caption
    places = filled if form.each_line else filled[:1] if front else filled[-1:]
    for place in places:
        lines[place] = _add_to_line(lines[place], text, front, within, form)
    return "\n".join(lines)


def _add_to_line(line: str, text: str, front: bool, within: Within, form: Form) -> str:
    """A line that has the tag anywhere, or begins or ends with the words, stays as it is."""
    if within == Within.TAGS:
        if holds(line, text, within, form):
            return line
        spaced = form.delimiter if form.delimiter.endswith(" ") else f"{form.delimiter} "
        kept = line.strip() if front else line.rstrip().removesuffix(form.delimiter.strip()).rstrip()
        return f"{text}{spaced}{kept}" if front else f"{kept}{spaced}{text}"
    found = rf"(?<!\w){re.escape(text)}(?!\w)"
    has = re.match(found, line.strip(), re.IGNORECASE) if front else re.search(f"{found}$", line.strip(), re.IGNORECASE)
    if has:
        return line
    return f"{text} {line.strip()}" if front else f"{line.rstrip()} {text}"
