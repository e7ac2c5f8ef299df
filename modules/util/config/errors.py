"""What a wrong config looks like to a person: one line for each problem."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Remedy:
    """Options that mend a problem together: (path, value as JSON) of each."""

    values: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Remedy":
        """The same from path -> value."""
        return cls(tuple(values.items()))


@dataclass(frozen=True)
class Problem:
    """One wrong thing in a config: the key's path in the JSON, what is wrong with it, and what would mend it.

    Attributes:
        path: of the option, empty if it is none.
        text: without a full stop at its end.
        remedies: each of them is enough. None: only a person can know.
    """

    path: str
    text: str
    remedies: tuple[Remedy, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class ConfigError(ValueError):
    """A config that cannot be used. Its text names every problem, one a line.

    Attributes:
        problems: all problems found.
        source: the file (or other origin) in which they were found, may be empty.
    """

    def __init__(self, problems: Sequence[Problem] | Problem | str, source: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.source = source
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}" if self.source else str(self.problems[0])
        head = f"{self.source}: " if self.source else ""
        return "\n".join([f"{head}{len(self.problems)} problems", *(f"  {problem}" for problem in self.problems)])

    def within(self, source: str, prefix: str = "") -> "ConfigError":
        """The same error, found in `source` below the path `prefix`."""
        return ConfigError(
            [Problem(join_path(prefix, problem.path), problem.text, problem.remedies) for problem in self.problems],
            source,
        )


def join_path(*parts: str | int) -> str:
    """A path in the JSON as users write it in overrides: keys and list indices with dots between."""
    return ".".join(str(part) for part in parts if part != "")


def show_value(value: Any) -> str:
    """A JSON value, short enough for a message."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}…"


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `words` that is spelt most like `word`, or None if none is close."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "_").replace(" ", "_")

    matcher = difflib.SequenceMatcher(b=plain(word), autojunk=False)
    best, best_ratio = None, cutoff
    for candidate in words:
        matcher.set_seq1(plain(candidate))
        # the first of equally near words wins
        if matcher.ratio() > best_ratio or (best is None and matcher.ratio() == best_ratio):
            best, best_ratio = candidate, matcher.ratio()
    return best
