import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self


class State(StrEnum):
    """What came of a case."""

    HOLDS = "holds"
    FAILS = "FAILS"
    REPORTED = "reported"
    """A figure without a bound."""
    NOT_MEASURED = "not measured"


class NotMeasured(Exception):
    """A case that this machine can't answer; the message says why."""


@dataclass(frozen=True)
class Row:
    """One case of a check.

    Attributes:
        check: name of the check.
        case: what was tried.
        state: what came of it.
        text: the figures in words, or why there are none.
        figures: what was measured, by names that end in their units.
    """

    check: str
    case: str
    state: State
    text: str
    figures: dict[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """JSON in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Reads what `to_line` wrote."""
        values = json.loads(line)
        return cls(**{**values, "state": State(values["state"])})
