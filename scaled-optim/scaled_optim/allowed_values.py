"""What values of options there are. The options themselves are declared in `options.py`.

Nothing of this needs torch, so that a program can read what may be chosen before it loads any.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`.

    Attributes:
        above, below: whether the limit itself is excluded.
        whole: only integers.
        optional: None is a value, too.
    """

    low: float = 0
    high: float = float("inf")
    above: bool = False
    below: bool = False
    whole: bool = False
    optional: bool = False

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else Real):
            return False
        # NaN compares false
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        high = f" and {'below' if self.below else 'at most'} {self.high}" if self.high < float("inf") else ""
        return f"{'null or ' * self.optional}{'an integer' if self.whole else 'a number'} {low}{high}"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.values)

    def __str__(self) -> str:
        return f"one of {', '.join(map(as_json, self.values))}"


@dataclass(frozen=True)
class Options:
    """Options of another rule, or None; the rule that takes them checks what they hold."""

    def allows(self, value: Any) -> bool:
        return value is None or isinstance(value, Mapping)

    def __str__(self) -> str:
        return "null or a set of options"


@dataclass(frozen=True)
class Text:
    """Any text, or None."""

    def allows(self, value: Any) -> bool:
        return value is None or isinstance(value, str)

    def __str__(self) -> str:
        return "null or a text"


BOOLEAN = Choice((False, True))


def as_json(value: Any) -> str:
    """As a config would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    return repr(value) if isinstance(value, float) else str(value)
