"""Lines of text for places that are too small for all of it."""

from collections.abc import Callable, Sequence

from modules.util.texts import tr_n


def lines_gone(old: Sequence[str], new: Sequence[str]) -> int:
    """How many lines at the start of `old` are left out of `new`, which begins with the rest; all, if nothing is left.

    Of several answers the smallest: a log of which only the last lines are kept loses as few as possible.
    """
    for gone in range(len(old)):
        if new and old[gone] == new[0] and list(old[gone:]) == list(new[: len(old) - gone]):
            return gone
    return len(old)


def shortened(text: str, room: int, measure: Callable[[str], int]) -> str:
    """The text, or as much of its beginning as fits, with … behind it.

    Args:
        text: one line.
        room: for it.
        measure: text -> its width, in the unit of `room`.
    """
    if measure(text) <= room:
        return text
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if measure(f"{text[:middle].rstrip()}…") <= room:
            fits = middle
        else:
            too_many = middle
    return f"{text[:fits].rstrip()}…"


def wrapped(text: str, room: int, most: int, measure: Callable[[str], int]) -> list[str]:
    """The beginning of a text in so many lines at most, broken between words; the last one ends in … if there is more.

    Args:
        text: whose line ends count as blanks.
        room: for a line.
        most: lines, at least 1.
        measure: text -> its width, in the unit of `room`.
    """
    # no more than this can be seen, and a caption may have a thousand words
    words, lines, line = text[: 40 * most + 200].split(), [], ""
    for place, word in enumerate(words):
        longer = f"{line} {word}" if line else word
        if not line or measure(longer) <= room:
            line = longer
            continue
        if len(lines) == most - 1:
            return [*lines, shortened(" ".join([line, *words[place:]]), room, measure)]
        lines.append(shortened(line, room, measure))
        line = word
    return [*lines, shortened(line, room, measure)] if line else lines


def things_to_mend(count: int) -> str:
    """How much is wrong: "1 thing to mend", "3 things to mend"."""
    return tr_n("{n} thing to mend", "{n} things to mend", count)
