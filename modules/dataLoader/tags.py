"""Captions as lists of tags: dropped, recased, shuffled. Pure functions of a caption and a random generator."""

import random
from collections.abc import Sequence

from modules.util.config.patterns import Pattern, PatternError
from modules.util.enum.TagDropoutMode import TagDropoutMode
from modules.util.enum.TagDropoutSpecialTagsMode import TagDropoutSpecialTagsMode
from modules.util.UserError import UserError


def split_tags(caption: str, delimiter: str) -> list[str]:
    """The tags of a caption, without the space around them."""
    return [tag.strip() for tag in caption.split(delimiter)]


def join_tags(tags: Sequence[str], delimiter: str, like: str) -> str:
    """Joins tags; with a space behind each delimiter if the caption `like` was written so."""
    spaced = f"{delimiter} " in like and not delimiter.endswith(" ")
    return (f"{delimiter} " if spaced else delimiter).join(tags)


def shuffle_tags(caption: str, rng: random.Random, *, delimiter: str = ",", keep: int = 0) -> str:
    """Puts all tags but the first `keep` in a random order."""
    tags = split_tags(caption, delimiter)
    kept, rest = tags[:keep], tags[keep:]
    rng.shuffle(rest)
    return join_tags(kept + rest, delimiter, caption)


def is_special(tag: str, special: Sequence[str | Pattern]) -> bool:
    """Whether a tag, with or without the parentheses of a weight around it, is one of the special ones.

    Raises:
        UserError: if a pattern takes too long on it.
    """
    forms = (tag, tag.strip("()"))
    try:
        return any(
            entry in forms if isinstance(entry, str) else any(entry.fullmatch(form) for form in forms)
            for entry in special
        )
    except PatternError as error:
        raise UserError(f"text.tag_dropout_special_tags: {error}") from None


def drop_tags(
    caption: str,
    rng: random.Random,
    *,
    probability: float,
    mode: TagDropoutMode = TagDropoutMode.RANDOM,
    special: Sequence[str | Pattern] = (),
    special_mode: TagDropoutSpecialTagsMode = TagDropoutSpecialTagsMode.NONE,
    delimiter: str = ",",
    keep: int = 0,
) -> str:
    """Leaves tags out at random; the first `keep` always stay, and the order of the others does, too.

    P(tag i of n is dropped) = p (RANDOM), p·(i+1)/n (RANDOM_WEIGHTED), or p for all n together (FULL), where the kept
    tags are not counted.

    Args:
        caption: tags with the delimiter between them.
        rng: makes the choice.
        probability: p, from 0 to 1.
        mode: see above.
        special: tags, or patterns that must match a whole tag.
        special_mode: WHITELIST: special tags are never dropped; BLACKLIST: no others are.
        delimiter: the text between two tags, not empty.
        keep: number of tags at the start that stay.
    """
    tags = split_tags(caption, delimiter)
    kept, rest = tags[:keep], tags[keep:]
    together, left = rng.random() < probability, []
    for index, tag in enumerate(rest):
        share = (index + 1) / len(rest) if mode == TagDropoutMode.RANDOM_WEIGHTED else 1.0
        # drawn for every tag, so that one tag's fate does not depend on whether another one is special
        drop = rng.random() < probability * share
        drop = together if mode == TagDropoutMode.FULL else drop
        if special_mode == TagDropoutSpecialTagsMode.WHITELIST and is_special(tag, special):
            drop = False
        if special_mode == TagDropoutSpecialTagsMode.BLACKLIST and not is_special(tag, special):
            drop = False
        if not drop:
            left.append(tag)
    return join_tags(kept + left, delimiter, caption)


def vary_capitals(
    caption: str,
    rng: random.Random,
    *,
    probability: float,
    styles: Sequence[str],
    lowercase: bool = False,
    delimiter: str = ",",
) -> str:
    """Writes each tag, with the given probability, in one of the styles: capslock, title, first, random.

    Args:
        caption: tags with the delimiter between them.
        rng: makes the choice.
        probability: of a change, for each tag, from 0 to 1.
        styles: names of styles, each equally likely.
        lowercase: turns the whole caption to lower case first.
        delimiter: the text between two tags, not empty.
    """
    text = caption.lower() if lowercase else caption
    tags = split_tags(text, delimiter)
    recased = [_in_style(tag, rng.choice(styles), rng) if rng.random() < probability else tag for tag in tags]
    return join_tags(recased, delimiter, caption)


def _in_style(tag: str, style: str, rng: random.Random) -> str:
    match style:
        case "capslock":
            return tag.upper()
        case "title":
            return " ".join(word.capitalize() for word in tag.split(" "))
        case "first":
            return tag.capitalize()
        case "random":
            return "".join(letter.upper() if rng.random() < 0.5 else letter.lower() for letter in tag)
    raise ValueError(f"caps_randomize_mode: found {style!r}, expected capslock, title, first or random")
