"""Turns pydantic's errors into lines that a person can act on."""

import math
import re
from typing import Any

from modules.util.config.errors import Problem, join_path, nearest, show_value
from modules.util.config.field_type import expected_text, field_type, option_of

from pydantic import BaseModel, ValidationError

JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")

OWN_ERROR = "config"
"""Type of the errors that our own validators raise; their text is shown as it is."""


def find_problems(config_class: type[BaseModel], error: ValidationError) -> list[Problem]:
    """One problem for each error, with the key's path, the value found and what was expected."""
    return [_problem(config_class, details) for details in error.errors(include_url=False)]


def _problem(config_class: type[BaseModel], details: dict) -> Problem:
    path, value = join_path(*details["loc"]), details["input"]
    owner, name, hidden = _field_at(config_class, details["loc"])
    if details["type"] == OWN_ERROR:
        return Problem(path, details["msg"])
    found = "a hidden value" if hidden else show_value(value)
    if owner is None:
        expected = {"dict_type": "an object", "list_type": "a list", "string_type": "a text"}.get(
            details["type"], "an object" if details["type"] in ("model_type", "model_attributes_type") else ""
        )
        return Problem(path, f"found {found}, expected {expected or details['msg']}")
    hint = "" if hidden else _hint(owner, name, value, path)
    return Problem(path, f"found {found}, expected {expected_text(owner, name)}{hint}")


def _field_at(config_class: type[BaseModel], loc: tuple) -> tuple[type[BaseModel] | None, str, bool]:
    """The class and name of the field at a path (None if the path leads inside a list or dict), and if it is secret."""
    owner, name, hidden = config_class, "", False
    keys = iter(loc)
    for key in keys:
        if owner is None or key not in owner.model_fields:
            return None, name, hidden
        found, name, kind = owner, key, field_type(owner, key)
        hidden = hidden or option_of(owner, name).secret
        inside_entry = not kind.is_config and next(keys, None) is not None
        owner = kind.kind if kind.is_config else kind.item
    return (None if inside_entry else found, name, hidden) if loc else (None, "", False)


def _hint(owner: type[BaseModel], name: str, value: Any, path: str) -> str:
    kind = field_type(owner, name)
    suggestion = None
    if kind.is_enum:
        near = nearest(str(value), kind.values) if isinstance(value, str) else None
        suggestion = f'"{near}"' if near else None
    elif kind.kind is bool and isinstance(value, str) and value.strip().lower() in ("true", "false"):
        suggestion = f"{value.strip().lower()} without quotes"
    elif kind.kind in (int, float) and isinstance(value, str) and is_finite_number(value):
        suggestion = f"{value.strip() if JSON_NUMBER.fullmatch(value.strip()) else float(value)} without quotes"
    elif kind.kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        suggestion = f'"{value}" with quotes'
    elif kind.is_config and isinstance(value, str) and name in kind.kind.model_fields:
        suggestion = f"the key {join_path(path, name)}"
    return f"; did you mean {suggestion}?" if suggestion else ""


def is_finite_number(text: str) -> bool:
    """Whether a text is a number to Python's `float`, other than inf and nan."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
