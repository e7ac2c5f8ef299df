"""Regular expressions that people write into options: lists of them, and matching whose time has a bound.

Python's `re` tries one way after the other. Where repeats lie in each other, as in `(a+)+$`, the number of ways doubles
with each character, and one name of a layer can take years. Such patterns are matched by following all ways at once
(K. Thompson, Regular expression search algorithm, CACM 1968), which gives the same yes or no. All others go to `re`.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

try:
    from re import _compiler as sre_compile
    from re import _parser as sre_parse
except ImportError:  # Python 3.10
    import sre_compile
    import sre_parse

LONGEST_PATTERN = 1000
"""Characters; longer patterns are refused if they hold repeats without end."""

LONGEST_TEXT = 1000
"""Characters; a longer text is no name and no tag, and no pattern matches it."""

MOST_WORK = 1_000_000
"""Positions that are looked at in one text, at most; it takes about a second."""

MOST_WAYS = 20_000
"""In how many ways `re` may try a pattern at one place. A repeat counts as `REPEATED` ways."""

REPEATED = 100

_CLOSING = {"(": ")", "[": "]", "{": "}"}


class PatternError(ValueError):
    """A text that is no regular expression, or none that can be matched in bounded time. Says why."""


class Pattern:
    """A regular expression that is only asked whether it matches.

    Args:
        source: as for `re`.

    Raises:
        PatternError: it is broken, or `re` alone could match it, and might never end.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._pattern = re.compile(source)
            tree = sre_parse.parse(source)
        except re.error as error:
            raise PatternError(str(error)) from None
        except (RecursionError, OverflowError, MemoryError):
            raise PatternError("it is nested too deeply, or a count is too large") from None
        self._steps: Callable[[str, frozenset[int]], frozenset[int]] | None = None
        if _ways(tree) > MOST_WAYS:
            if len(source) > LONGEST_PATTERN:
                raise PatternError(
                    f"it has {len(source)} characters and many repeats, expected at most {LONGEST_PATTERN}"
                )
            self._steps = _sequence(tree, self._pattern.flags)

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in a text; False if that is longer than `LONGEST_TEXT`."""
        if len(text) > LONGEST_TEXT:
            return False
        if self._steps is None:
            return self._pattern.search(text) is not None
        return len(self._ends(text, frozenset(range(len(text) + 1)))) > 0

    def fullmatch(self, text: str) -> bool:
        """Whether it matches the whole text; False if that is longer than `LONGEST_TEXT`."""
        if len(text) > LONGEST_TEXT:
            return False
        if self._steps is None:
            return self._pattern.fullmatch(text) is not None
        return len(text) in self._ends(text, frozenset({0}))

    def _ends(self, text: str, starts: frozenset[int]) -> frozenset[int]:
        assert self._steps is not None
        return self._steps(_Counted(text), starts)


@lru_cache(maxsize=1024)
def find_pattern(source: str) -> Pattern:
    """The pattern of a text; made once. Raises PatternError as `Pattern` does."""
    return Pattern(source)


def split_patterns(text: str, delimiter: str = ",") -> list[str]:
    """The patterns of a list, stripped, empty ones left out: split where the delimiter lies outside of (), [] and {}.

    A bracket behind a backslash is no bracket, and neither is one that is never closed.
    """
    pieces, start, place, waiting = [], 0, 0, ""
    while place < len(text):
        letter = text[place]
        if not waiting and text.startswith(delimiter, place):
            pieces.append(text[start:place])
            start = place = place + len(delimiter)
            continue
        if letter == "\\":
            place += 1
        elif waiting.endswith("]"):
            # inside of a class only its end counts
            waiting = waiting[:-1] if letter == "]" else waiting
        elif letter in _CLOSING and _CLOSING[letter] in text[place + 1 :]:
            waiting += _CLOSING[letter]
            if letter == "[":
                # a ] that comes first is a member of the class
                place += text.startswith("^", place + 1)
                place += text.startswith("]", place + 1)
        elif waiting and letter == waiting[-1]:
            waiting = waiting[:-1]
        place += 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


class _Counted(str):
    """A text that knows how much work went into it."""

    def __init__(self, text: str) -> None:
        self.work = 0

    def count(self, positions: int) -> None:  # type: ignore[override]
        self.work += positions
        if self.work > MOST_WORK:
            raise PatternError(f"it takes too long on {str(self)[:80]!r}; write it with fewer repeats")


Step = Callable[[_Counted, frozenset[int]], frozenset[int]]

_ALONE = ("LITERAL", "NOT_LITERAL", "IN", "ANY", "AT")
# what may follow the place where `re` gave up is what `re` alone knows
_UNKNOWN = {
    "GROUPREF": "a reference to a group",
    "GROUPREF_EXISTS": "a condition",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive repeat",
}


def _ways(sequence: Iterable[tuple]) -> float:
    """How many ways `re` may have to try where a sequence does not match."""
    ways = 1.0
    for kind, value in sequence:
        match str(kind):
            case "BRANCH":
                ways *= sum(map(_ways, value[1]))
            case "SUBPATTERN":
                ways *= _ways(value[3])
            case "ASSERT" | "ASSERT_NOT":
                ways *= _ways(value[1])
            case "ATOMIC_GROUP":
                ways *= _ways(value)
            case "GROUPREF_EXISTS":
                ways *= sum(_ways(piece) for piece in value[1:] if piece is not None)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                ways *= _ways_of_repeat(_ways(value[2]), value[0], value[1])
        if ways > MOST_WAYS:
            return math.inf
    return ways


def _ways_of_repeat(body: float, least: int, most: int) -> float:
    if body > 1:
        return body ** min(least, 64) if least == most else 1 + body if most == 1 else math.inf
    return min(most - least + 1, REPEATED)


def _sequence(sequence: object, flags: int) -> Step:
    steps = [_step(node, flags) for node in sequence]

    def run(text: _Counted, starts: frozenset[int]) -> frozenset[int]:
        for step in steps:
            if not starts:
                break
            starts = step(text, starts)
        return starts

    return run


def _step(node: tuple, flags: int) -> Step:
    kind, value = str(node[0]), node[1]
    if kind in _ALONE:
        return _alone(node, flags)
    if kind == "SUBPATTERN":
        return _sequence(value[3], (flags | value[1]) & ~value[2])
    if kind == "BRANCH":
        branches = [_sequence(branch, flags) for branch in value[1]]
        return lambda text, starts: frozenset().union(*(branch(text, starts) for branch in branches))
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        return _repeat(_sequence(value[2], flags), value[0], value[1])
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _assertion(value, flags, wanted=kind == "ASSERT")
    if kind == "FAILURE":
        return lambda text, starts: frozenset()
    what = _UNKNOWN.get(kind, kind)
    raise PatternError(f"repeats inside repeats together with {what} may never end; write it simpler")


def _alone(node: tuple, flags: int) -> Step:
    """One character, or a place between two: `re` itself says whether it fits."""
    state = sre_parse.State()
    state.flags = flags
    state.str = ""
    match = sre_compile.compile(sre_parse.SubPattern(state, [node]), flags & ~re.DEBUG).match

    def run(text: _Counted, starts: frozenset[int]) -> frozenset[int]:
        text.count(len(starts))
        return frozenset(found.end() for start in starts if (found := match(text, start)))

    return run


def _repeat(body: Step, least: int, most: int) -> Step:
    def run(text: _Counted, starts: frozenset[int]) -> frozenset[int]:
        for _ in range(least):
            text.count(1)
            ends = body(text, starts)
            if ends == starts:
                break
            starts = ends
        seen = new = starts
        rounds = least
        while new and rounds < most:
            text.count(1)
            # a place that was reached before, in fewer rounds, has nothing new behind it
            new = body(text, new) - seen
            seen |= new
            rounds += 1
        return seen

    return run


def _assertion(value: tuple, flags: int, wanted: bool) -> Step:
    direction, sequence = value
    body = _sequence(sequence, flags)
    # what looks back has one length
    width = sequence.getwidth()[0] if direction < 0 else 0

    def holds(text: _Counted, place: int) -> bool:
        text.count(1)
        start = place - width
        ends = body(text, frozenset({start})) if start >= 0 else frozenset()
        return place in ends if direction < 0 else len(ends) > 0

    return lambda text, starts: frozenset(place for place in starts if holds(text, place) == wanted)
