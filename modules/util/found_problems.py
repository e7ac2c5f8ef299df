"""Checks that raise, as a list of what is wrong."""

from collections.abc import Callable, Sequence
from typing import Any

from modules.util.config.errors import ConfigError, Problem
from modules.util.config.field_type import field_type
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError


def found(check: Callable[..., object], *arguments: Any, path: str = "") -> list[Problem]:
    """What is wrong if `check(*arguments)` raises UserError or ConfigError; nothing if it returns.

    Args:
        path: the option that is to blame where the message begins with none.
    """
    try:
        check(*arguments)
    except UserError as error:
        return [problem_of(error, path)]
    except ConfigError as error:
        return [Problem(one.path or path, one.text, one.remedies) for one in error.problems]
    return []


def problem_of(error: UserError, path: str = "") -> Problem:
    """A message as a problem of the option that it begins with, else of `path`."""
    text = str(error)
    start, colon, rest = text.partition(": ")
    own = is_option(start) if colon else False
    return Problem(start if own else path, (rest if own else text).rstrip("."), error.remedies)


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raises UserError that tells all of them, one a line; nothing happens if there are none."""
    if not problems:
        return
    lines = [f"{problem}." for problem in problems]
    text = lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} problems", *(f"  {line}" for line in lines)])
    raise UserError(text, *(remedy for problem in problems for remedy in problem.remedies))


def is_option(path: str) -> bool:
    """Whether a run's config has an option of this path."""
    owner: type = TrainConfig
    *outer, last = path.split(".")
    for key in outer:
        if key not in owner.model_fields or not field_type(owner, key).is_config:
            return False
        owner = field_type(owner, key).kind
    return last in owner.model_fields
